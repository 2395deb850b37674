// Patterns of file names in a data set, as data.pairs of the job file has them: "gtFine/train/*/*_gtFine_labelIds.png".
#ifndef DISTILL_COMMON_PLAN_PATH_PATTERN_H_
#define DISTILL_COMMON_PLAN_PATH_PATTERN_H_

#include <cstddef>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "common/status.h"

namespace distill {

// A relative path in which a '*' stands for one character or more, none of them '/'. One '*' at most in each folder or
// file name, so that a name matches in one way. Immutable, any thread.
class PathPattern {
 public:
  // A folder's or the file's name.
  class Part {
   public:
    bool has_star() const { return has_star_; }
    const std::string& text() const { return text_; }  // as it was written
    // What the star stands for in `name` (empty text of a part without one); nullopt: the name does not match.
    std::optional<std::string> Match(std::string_view name) const;
    std::string Fill(std::string_view star) const;  // REQUIRES: has_star()

   private:
    friend class PathPattern;
    std::string text_;
    bool has_star_ = false;
    size_t before_ = 0;  // characters before the star
  };

  // kInvalidArgument, in words that follow "the pattern 'TEXT' ": empty, over 1024 bytes, absolute, an empty part, "."
  // or "..", a control character, two stars in one part, "**", no star at all.
  static StatusOr<PathPattern> Parse(std::string_view text);

  const std::vector<Part>& parts() const { return parts_; }  // >= 1
  size_t stars() const { return stars_; }                    // >= 1
  // The path in which the stars stand for `stars`, in their order. REQUIRES: as many as stars().
  std::string Fill(const std::vector<std::string>& stars) const;

 private:
  std::vector<Part> parts_;
  size_t stars_ = 0;
};

}  // namespace distill

#endif  // DISTILL_COMMON_PLAN_PATH_PATTERN_H_
