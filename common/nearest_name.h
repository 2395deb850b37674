// "did you mean ...?": the candidate closest to a misspelt name.
#ifndef DISTILL_COMMON_NEAREST_NAME_H_
#define DISTILL_COMMON_NEAREST_NAME_H_

#include <span>
#include <string>
#include <string_view>

namespace distill {

// The candidate with the smallest edit distance (Levenshtein; a transposition counts 1), or "" when none is within half
// of the name's length (at least 2). Ties: the first.
std::string NearestName(std::string_view name, std::span<const std::string> candidates);
// "; did you mean 'x'?" or "" when nothing is near.
std::string DidYouMean(std::string_view name, std::span<const std::string> candidates);

}  // namespace distill

#endif  // DISTILL_COMMON_NEAREST_NAME_H_
