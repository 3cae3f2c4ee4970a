// Atomic writes by temporary name and rename, and whole-file reads.
#include "libtorch/files.h"

#include <fcntl.h>
#include <heed/attention.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <ostream>
#include <streambuf>
#include <vector>

namespace heed::nn {
namespace fs = std::filesystem;
namespace {

// A stream buffer over a file descriptor that remembers why writing failed; std::ofstream forgets.
class DescriptorBuffer : public std::streambuf {
 public:
  explicit DescriptorBuffer(int descriptor) : descriptor_(descriptor), buffer_(1 << 18) {
    setp(buffer_.data(), buffer_.data() + buffer_.size());
  }
  int error() const { return error_; }

 protected:
  int_type overflow(int_type c) override {
    if (sync() != 0) return traits_type::eof();
    if (!traits_type::eq_int_type(c, traits_type::eof())) {
      *pptr() = traits_type::to_char_type(c);
      pbump(1);
    }
    return traits_type::not_eof(c);
  }
  int sync() override {
    const bool good = write_all(pbase(), static_cast<size_t>(pptr() - pbase()));
    setp(buffer_.data(), buffer_.data() + buffer_.size());
    return good ? 0 : -1;
  }
  std::streamsize xsputn(const char* data, std::streamsize n) override {
    if (n == 0) return 0;  // data may be null then, which memcpy must not see
    if (n < epptr() - pptr()) {
      std::memcpy(pptr(), data, static_cast<size_t>(n));
      pbump(static_cast<int>(n));
      return n;
    }
    return sync() == 0 && write_all(data, static_cast<size_t>(n)) ? n : 0;
  }

 private:
  bool write_all(const char* data, size_t n) {
    while (n > 0 && error_ == 0) {
      const ssize_t written = ::write(descriptor_, data, n);
      if (written >= 0) {
        data += written;
        n -= static_cast<size_t>(written);
      } else if (errno != EINTR) {
        error_ = errno;
      }
    }
    return error_ == 0;
  }

  int descriptor_;
  int error_ = 0;
  std::vector<char> buffer_;
};

// Closes the descriptor and removes the file, unless it was kept.
struct Temporary {
  std::string path;
  int descriptor = -1;
  ~Temporary() {
    if (descriptor >= 0) ::close(descriptor);
    if (!path.empty()) ::unlink(path.c_str());
  }
};

std::string reason(int error) { return std::strerror(error); }

[[noreturn]] void fail(const std::string& path, int error, bool existed) {
  throw Error("cannot write " + path + ": " + reason(error) +
              (existed ? "; the old file is untouched" : "; nothing was left behind"));
}

std::string prefix(const fs::path& target) { return "." + target.filename().string() + ".tmp-"; }

// Removes what killed writers of the same file left. A writer at work holds a lock on its temporary file.
void sweep(const fs::path& folder, const std::string& prefix) {
  std::error_code ignored;
  for (fs::directory_iterator entry(folder, ignored), end; !ignored && entry != end; entry.increment(ignored)) {
    if (entry->path().filename().string().rfind(prefix, 0) != 0) continue;
    Temporary stale{{}, ::open(entry->path().c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK)};
    if (stale.descriptor >= 0 && ::flock(stale.descriptor, LOCK_EX | LOCK_NB) == 0) stale.path = entry->path().string();
  }
}

// Creates and locks a temporary file beside the target.
void open_temporary(const fs::path& folder, const std::string& prefix, Temporary& file) {
  static std::atomic<uint64_t> counter{0};
  for (int attempt = 0; attempt < 1000; ++attempt) {
    const std::string path = folder / (prefix + std::to_string(::getpid()) + "-" + std::to_string(counter++));
    file.descriptor = ::open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (file.descriptor < 0) {
      if (errno == EEXIST) continue;
      return;
    }
    file.path = path;
    ::flock(file.descriptor, LOCK_EX | LOCK_NB);  // file systems without locks merely lose the sweeping
    struct stat status {};
    if (::fstat(file.descriptor, &status) == 0 && status.st_nlink > 0) return;
    ::close(file.descriptor);  // another writer swept it before the lock was there
    file = Temporary{};
  }
  errno = EEXIST;
}

void write_through(const std::string& path, const std::function<void(std::ostream&)>& write) {
  Temporary device{{}, ::open(path.c_str(), O_WRONLY | O_CLOEXEC)};
  if (device.descriptor < 0) throw Error("cannot write " + path + ": " + reason(errno));
  DescriptorBuffer buffer(device.descriptor);
  std::ostream out(&buffer);
  write(out);
  out.flush();
  if (buffer.error() != 0) throw Error("cannot write " + path + ": " + reason(buffer.error()));
}

}  // namespace

void write_file(const std::string& path, const std::function<void(std::ostream&)>& write) {
  if (path.empty()) throw Error("cannot write a file without a name; give it a path");
  std::error_code error;
  fs::path target = path;
  if (fs::is_symlink(fs::symlink_status(target, error))) {
    target = fs::weakly_canonical(target, error);
    if (error) fail(path, error.value(), false);
  }
  struct stat old {};
  const bool existed = ::stat(target.c_str(), &old) == 0;
  if (existed && S_ISDIR(old.st_mode)) throw Error("cannot write " + path + ": it is a directory");
  if (existed && !S_ISREG(old.st_mode)) return write_through(path, write);
  if (existed && ::access(target.c_str(), W_OK) != 0) fail(path, errno, true);
  if (target.filename().empty()) throw Error("cannot write " + path + ": it names a directory");
  const fs::path folder = target.has_parent_path() ? target.parent_path() : fs::path(".");

  sweep(folder, prefix(target));
  Temporary file;
  open_temporary(folder, prefix(target), file);
  if (file.descriptor < 0) fail(path, errno, existed);
  if (existed) ::fchmod(file.descriptor, old.st_mode & 07777);

  DescriptorBuffer buffer(file.descriptor);
  std::ostream out(&buffer);
  write(out);
  out.flush();
  if (buffer.error() != 0) fail(path, buffer.error(), existed);
  if (!out)
    throw Error("cannot write " + path + ": the stream failed" + (existed ? "; the old file is untouched" : ""));
  if (::fsync(file.descriptor) != 0) fail(path, errno, existed);
  if (::rename(file.path.c_str(), target.c_str()) != 0) fail(path, errno, existed);
  file.path.clear();

  // The rename itself must survive a power cut. Some file systems cannot sync a folder; they say EINVAL.
  Temporary directory{{}, ::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC)};
  if (directory.descriptor >= 0 && ::fsync(directory.descriptor) != 0 && errno != EINVAL && errno != EROFS) {
    throw Error("wrote " + path + ", but its folder could not be synced (" + reason(errno) +
                "), so the file may not survive a power cut");
  }
}

void write_file(const std::string& path, const std::string& bytes) {
  write_file(path, [&](std::ostream& out) { out.write(bytes.data(), static_cast<std::streamsize>(bytes.size())); });
}

void make_folder(const std::string& path) {
  std::error_code error;
  std::filesystem::create_directories(path, error);
  if (error) throw Error("cannot make the folder " + path + ": " + error.message());
}

std::string read_file(const std::string& path) {
  Temporary file{{}, ::open(path.c_str(), O_RDONLY | O_CLOEXEC)};
  struct stat status {};
  if (file.descriptor < 0 || ::fstat(file.descriptor, &status) != 0) {
    if (errno == ENOENT) throw Error("there is no file " + path);
    throw Error("cannot read " + path + ": " + reason(errno));
  }
  if (S_ISDIR(status.st_mode)) throw Error("cannot read " + path + ": it is a directory, not a file");
  // The size is a hint only: pipes have none and files grow. One spare byte finds the end without another resize.
  std::string bytes(S_ISREG(status.st_mode) ? static_cast<size_t>(status.st_size) + 1 : 4096, '\0');
  size_t filled = 0;
  while (true) {
    const ssize_t n = ::read(file.descriptor, bytes.data() + filled, bytes.size() - filled);
    if (n == 0) break;
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) throw Error("cannot read " + path + ": " + reason(errno));
    filled += static_cast<size_t>(n);
    if (filled == bytes.size()) bytes.resize(2 * bytes.size());
  }
  bytes.resize(filled);
  return bytes;
}

}  // namespace heed::nn
