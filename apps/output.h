// Standard output, for a program whose reader may leave early (`heed ... | head`) or whose disk may be full, and lines
// to standard error.
#pragma once

#include <string>
#include <string_view>

namespace heed::app {

// Thrown when the reader has gone. Not an error: the program ends quietly.
struct ReaderGone {};

// Call first in main. A closed pipe becomes an error code instead of a signal, and a closed standard stream is opened
// on /dev/null, so that no file of ours gets its number and is printed into.
void prepare_streams();

// Writes all of the text to standard output, unbuffered. Throws ReaderGone, or heed::Error saying why it failed.
void print(std::string_view text);

// A line to standard error, with what cannot be printed replaced.
void say(std::string_view line);

// Throws heed::Error if a file cannot be made at this path for lack of its folder. An empty path is no file.
void check_folder_of(const std::string& path);

}  // namespace heed::app
