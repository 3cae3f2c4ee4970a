// Files are written whole or not at all: full disks, missing rights, links, litter of killed writers.
#include "libtorch/files.h"

#include <gtest/gtest.h>
#include <heed/attention.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <ostream>

#include "said.h"

namespace fs = std::filesystem;
using heed::nn::read_file;
using heed::nn::write_file;

namespace {

using heed::tests::error_of;

class Files : public testing::Test {
 protected:
  void SetUp() override {
    std::string name = (fs::temp_directory_path() / "heed-files-XXXXXX").string();
    ASSERT_NE(::mkdtemp(name.data()), nullptr);
    dir_ = name;
  }
  void TearDown() override { fs::remove_all(dir_); }

  std::string path(const std::string& name) const { return (dir_ / name).string(); }
  int64_t entries() const { return std::distance(fs::directory_iterator(dir_), fs::directory_iterator()); }

  fs::path dir_;
};

// No file of this process may grow past `bytes`: a disk that fills up, without root.
class FileSizeLimit {
 public:
  explicit FileSizeLimit(rlim_t bytes) : handler_(::signal(SIGXFSZ, SIG_IGN)) {
    ::getrlimit(RLIMIT_FSIZE, &before_);
    rlimit limit{bytes, before_.rlim_max};
    ::setrlimit(RLIMIT_FSIZE, &limit);
  }
  ~FileSizeLimit() {
    ::setrlimit(RLIMIT_FSIZE, &before_);
    ::signal(SIGXFSZ, handler_);
  }

 private:
  rlimit before_{};
  sighandler_t handler_;
};

TEST_F(Files, RoundTrip) {
  std::string bytes = "a\0b\r\n\xff", big(3'000'000, 'x');
  for (const auto& content : {std::string(), bytes, big}) {
    write_file(path("f"), content);
    EXPECT_EQ(read_file(path("f")), content);
  }
  write_file(path("many"), [](std::ostream& out) {
    for (int i = 0; i < 200000; ++i) out << i << ' ';
  });
  EXPECT_EQ(read_file(path("many")).substr(0, 8), "0 1 2 3 ");
  EXPECT_EQ(read_file(path("many")).size(), 1288890u);
  EXPECT_EQ(entries(), 2);
}

TEST_F(Files, AFullDiskKeepsTheOldFile) {
  write_file(path("model"), "good");
  {
    const FileSizeLimit limit(100'000);
    const std::string error = error_of([&] { write_file(path("model"), std::string(1'000'000, 'x')); });
    EXPECT_NE(error.find(path("model")), std::string::npos) << error;
    EXPECT_NE(error.find("File too large"), std::string::npos) << error;
    EXPECT_NE(error.find("the old file is untouched"), std::string::npos) << error;
    EXPECT_NE(error_of([&] { write_file(path("new"), std::string(1'000'000, 'x')); }).find("nothing was left behind"),
              std::string::npos);
  }
  EXPECT_EQ(read_file(path("model")), "good");
  EXPECT_EQ(entries(), 1);
}

TEST_F(Files, AReallyFullDisk) {
  if (::mount("none", dir_.c_str(), "tmpfs", 0, "size=64k") != 0) GTEST_SKIP() << "mounting a small disk needs root";
  write_file(path("model"), "good");
  const std::string error = error_of([&] { write_file(path("model"), std::string(1'000'000, 'x')); });
  const std::string kept = read_file(path("model"));
  const int64_t files = entries();
  ::umount2(dir_.c_str(), MNT_DETACH);
  EXPECT_NE(error.find("No space left on device"), std::string::npos) << error;
  EXPECT_EQ(kept, "good");
  EXPECT_EQ(files, 1);
}

TEST_F(Files, AnExceptionOfTheWriterPassesThroughAndLeavesNothing) {
  write_file(path("f"), "old");
  EXPECT_THROW(write_file(path("f"),
                          [](std::ostream& out) {
                            out << std::string(1'000'000, 'x');
                            throw std::logic_error("changed my mind");
                          }),
               std::logic_error);
  EXPECT_EQ(read_file(path("f")), "old");
  EXPECT_EQ(entries(), 1);
}

TEST_F(Files, WrongPaths) {
  EXPECT_NE(error_of([&] { write_file(dir_.string(), "x"); }).find("is a directory"), std::string::npos);
  EXPECT_NE(error_of([&] { write_file(path("no/such/file"), "x"); }).find("No such file"), std::string::npos);
  EXPECT_NE(error_of([&] { write_file("", "x"); }).find("without a name"), std::string::npos);
  EXPECT_NE(error_of([&] { read_file(path("none")); }).find("there is no file " + path("none")), std::string::npos);
  EXPECT_NE(error_of([&] { read_file(dir_.string()); }).find("directory"), std::string::npos);
  if (::geteuid() != 0) {
    write_file(path("locked"), "old");
    ::chmod(path("locked").c_str(), 0444);
    EXPECT_NE(error_of([&] { write_file(path("locked"), "x"); }).find("Permission denied"), std::string::npos);
    ::chmod(dir_.c_str(), 0555);
    EXPECT_NE(error_of([&] { write_file(path("new"), "x"); }).find("Permission denied"), std::string::npos);
    ::chmod(dir_.c_str(), 0755);
  }
}

TEST_F(Files, LinksAndPermissionsAreKept) {
  write_file(path("real"), "old");
  ::chmod(path("real").c_str(), 0640);
  fs::create_symlink("real", path("link"));
  write_file(path("link"), "new");
  EXPECT_TRUE(fs::is_symlink(path("link")));
  EXPECT_EQ(read_file(path("real")), "new");
  struct stat status {};
  ::stat(path("real").c_str(), &status);
  EXPECT_EQ(status.st_mode & 0777, 0640u);
}

TEST_F(Files, DevicesAreWrittenThrough) {
  write_file("/dev/null", "x");
  EXPECT_TRUE(fs::is_character_file("/dev/null"));
  EXPECT_NE(error_of([] { write_file("/dev/full", std::string(1'000'000, 'x')); }).find("No space left"),
            std::string::npos);
}

// A killed writer's temporary file goes with the next write; one that is still being written stays.
TEST_F(Files, LitterOfKilledWritersIsSwept) {
  int ready[2];
  ASSERT_EQ(::pipe(ready), 0);
  const pid_t writer = ::fork();
  if (writer == 0) {
    write_file(path("f"), [&](std::ostream& out) {
      out << "half";
      out.flush();
      (void)!::write(ready[1], "r", 1);
      ::pause();
    });
    ::_exit(0);
  }
  char byte;
  ASSERT_EQ(::read(ready[0], &byte, 1), 1);
  write_file(path("f"), "mine");
  EXPECT_EQ(entries(), 2);  // f, and the other's temporary file
  ::kill(writer, SIGKILL);
  ::waitpid(writer, nullptr, 0);
  EXPECT_EQ(entries(), 2);
  write_file(path("f"), "mine again");
  EXPECT_EQ(entries(), 1);
  EXPECT_EQ(read_file(path("f")), "mine again");
  ::close(ready[0]);
  ::close(ready[1]);
}

}  // namespace
