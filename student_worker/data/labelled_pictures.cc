#include "student_worker/data/labelled_pictures.h"

#include <memory>
#include <utility>

#include "student_worker/data/file_dataset.h"
#include "student_worker/data/picture_headers.h"

namespace distill {

void SetPictures(const SplitRequest& request, const std::string& listing, const std::string& prefix,
                 std::vector<ImageFile> chosen, SplitIndex* split) {
  PictureHeaders headers = ReadHeaders(request, listing, /*label_maps=*/false, chosen);
  if (!headers.wanted) return;
  split->channels = headers.channels;
  split->height = headers.height / request.shrink;
  split->width = headers.width / request.shrink;
  split->files = std::make_shared<FileDataset>(FileDataset::Options{.source = prefix,
                                                                    .files = std::move(chosen),
                                                                    .sound = std::move(headers.sound),
                                                                    .labels = split->labels,
                                                                    .channels = headers.channels,
                                                                    .height = headers.height,
                                                                    .width = headers.width,
                                                                    .pixels = headers.pixels,
                                                                    .shrink = request.shrink});
}

}  // namespace distill
