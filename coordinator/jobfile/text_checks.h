// Checks of text that users wrote: names, paths, encodings. Pure functions, any thread.
#ifndef DISTILL_COORDINATOR_JOBFILE_TEXT_CHECKS_H_
#define DISTILL_COORDINATOR_JOBFILE_TEXT_CHECKS_H_

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace distill {

// Position of the first byte that is not part of well-formed UTF-8 (no overlong forms, no surrogates), or is a control
// character other than tab, line feed and carriage return; npos when there is none. A byte order mark at the start is
// fine.
size_t FirstInvalidByte(std::string_view text);

// At most `most` bytes of valid UTF-8, cut between characters: protobuf refuses strings with half of one.
std::string CutText(std::string_view text, size_t most);

// For messages: at most 60 bytes, cut at a character border with "..."; line ends and controls become '?'.
std::string Shorten(std::string_view text);

// [a-z0-9]([-a-z0-9]*[a-z0-9])?, at most 63 letters: safe as a folder name, label value and DNS label.
bool IsJobName(std::string_view text);
// [A-Za-z0-9]([-._A-Za-z0-9]*[A-Za-z0-9])?, at most 63 letters: names of stages and losses.
bool IsPlainName(std::string_view text);

// "" when `path` may be handed to a worker: not empty, at most 1024 bytes, no "..", no control characters. Else what is
// wrong. Whether it lies inside the worker's roots is checked by the worker.
std::string PathProblem(std::string_view path);

// "64MiB" -> 67108864; units B, KiB, MiB, GiB; a bare number counts bytes. False when malformed or over 2^63.
bool ParseByteSize(std::string_view text, uint64_t* bytes);

}  // namespace distill

#endif  // DISTILL_COORDINATOR_JOBFILE_TEXT_CHECKS_H_
