// The end of the readers whose pictures have one label each, image folders' and image lists'.
#ifndef DISTILL_STUDENT_WORKER_DATA_LABELLED_PICTURES_H_
#define DISTILL_STUDENT_WORKER_DATA_LABELLED_PICTURES_H_

#include <string>
#include <vector>

#include "student_worker/data/image_source.h"
#include "student_worker/data/split_request.h"

namespace distill {

// Looks at the pictures' headers and sets split->files and its shape; what is wrong with a picture is in the request's
// report. Without a shape that the student can take, both stay as they are. `listing`: where the pictures are named,
// for messages about all of them; `prefix`: what the names are below. REQUIRES: split->labels has one for each of
// `chosen`, in its order.
void SetPictures(const SplitRequest& request, const std::string& listing, const std::string& prefix,
                 std::vector<ImageFile> chosen, SplitIndex* split);

}  // namespace distill

#endif  // DISTILL_STUDENT_WORKER_DATA_LABELLED_PICTURES_H_
