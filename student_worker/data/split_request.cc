#include "student_worker/data/split_request.h"

#include "common/str_cat.h"

namespace distill {

void IndexDigest::Add(const std::string& name, int64_t label, uint64_t size, uint64_t map_size) {
  hash_.Update(StrCat(name.size(), " ", name, " ", label, " ", size, " ", map_size, "\n"));
}

bool CheckShape(const SplitRequest& request, const std::string& source, uint32_t channels, uint32_t height,
                uint32_t width) {
  const WantedImages& want = request.want;
  const std::string sides =
      StrCat("the images in '", source, "' have [", height, ", ", width, "] pixels (height, width)");
  const std::string indivisible = StrCat("data.shrink ", request.shrink,
                                         " does not divide both sides; set it to a "
                                         "common divisor of them, or to 1");
  const bool divisible = height % request.shrink == 0 && width % request.shrink == 0;
  const size_t before = request.report->refusals();
  if (want.height == 0) {
    if (!divisible) request.report->Refuse(absl::FailedPreconditionError(StrCat(sides, ", and ", indivisible)));
  } else if (height != want.height * request.shrink || width != want.width * request.shrink) {
    std::string text = StrCat(sides, ", the student takes [", want.height, ", ", want.width, "]");
    if (request.shrink > 1) {
      StrAppend(&text, ", which data.shrink ", request.shrink, " makes of [", want.height * request.shrink, ", ",
                want.width * request.shrink, "]");
    }
    if (!divisible) {
      StrAppend(&text, "; and ", indivisible);
    } else {
      StrAppend(&text, "; set student.image: [", height / request.shrink, ", ", width / request.shrink,
                "], or store the images in the other size");
    }
    request.report->Refuse(absl::InvalidArgumentError(text));
  }
  CheckChannels(request, source, channels);
  return request.report->refusals() == before;
}

bool CheckChannels(const SplitRequest& request, const std::string& source, uint32_t channels) {
  if (request.want.channels == 0 || channels == request.want.channels) return true;
  request.report->Refuse(absl::InvalidArgumentError(
      StrCat("the images in '", source, "' have ", channels, channels == 1 ? " channel (grey)" : " channels (colour)",
             ", the student takes ", request.want.channels, "; set student.in_channels: ", channels)));
  return false;
}

}  // namespace distill
