// Files that are written whole or not at all, and read with errors people can act on. Needs no LibTorch.
#pragma once

#include <functional>
#include <iosfwd>
#include <string>

namespace heed::nn {

// Writes path through `write`, to a temporary name in the same folder that takes path's place only when every byte is
// on the disk (fsync, rename, fsync of the folder). Whatever fails, a full disk or a kill, path holds either all of the
// old file or all of the new one; a temporary file that a killed process left is removed by the next write of the same
// path. Symbolic links are followed, the permissions of an existing file are kept, and a device or pipe (/dev/stdout)
// is written straight through. Throws heed::Error naming the path and the reason; what `write` throws passes through
// after the clean-up.
void write_file(const std::string& path, const std::function<void(std::ostream&)>& write);
void write_file(const std::string& path, const std::string& bytes);

// Makes the folder, and those it lies in, where they are not there. Throws heed::Error with the reason.
void make_folder(const std::string& path);

// The bytes of the file. Throws heed::Error when it is missing, a directory, or cannot be read.
std::string read_file(const std::string& path);

}  // namespace heed::nn
