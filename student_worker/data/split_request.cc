#include "student_worker/data/split_request.h"

#include <set>

#include "common/str_cat.h"
#include "student_worker/data/test_images.h"

namespace distill {

void IndexDigest::Add(const std::string& name, int64_t label, uint64_t size, uint64_t map_size) {
  hash_.Update(StrCat(name.size(), " ", name, " ", label, " ", size, " ", map_size, "\n"));
}

std::vector<uint32_t> PartOf(const SplitRequest& request, const std::vector<std::string>& names,
                             const std::vector<int64_t>& labels) {
  std::vector<uint32_t> part;
  if (request.part == SplitPart::kAll) {
    for (uint32_t i = 0; i < names.size(); ++i) part.push_back(i);
    return part;
  }
  const bool wants_test = request.part == SplitPart::kTest;
  const std::vector<bool> is_test = ChooseTestImages(request.split, names, labels);
  std::set<int64_t> classes, tested;
  for (uint32_t i = 0; i < names.size(); ++i) {
    classes.insert(labels[i]);
    if (is_test[i]) tested.insert(labels[i]);
    if (is_test[i] == wants_test) part.push_back(i);
  }
  if (wants_test && tested.size() < classes.size()) {
    request.report->Warn(StrCat("data.split leaves ", classes.size() - tested.size(), " of ", classes.size(),
                                " classes without a test image: how well the student knows them is not measured."));
  }
  return part;
}

void RefuseOwnTestImages(const SplitRequest& request, const std::string& source) {
  if (source.empty()) return;
  request.report->Refuse(absl::FailedPreconditionError(
      StrCat("data.split takes test images out of those of train, but there are test images in '", source,
             "'; leave data.split out, or name a folder without them")));
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
