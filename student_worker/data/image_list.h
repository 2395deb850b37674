// Lists of pictures and their classes, as text.
#ifndef DISTILL_STUDENT_WORKER_DATA_IMAGE_LIST_H_
#define DISTILL_STUDENT_WORKER_DATA_IMAGE_LIST_H_

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "common/status.h"

namespace distill {

struct ListedImage {
  std::string path;        // as it is written
  std::string class_name;  // empty in a list without labels
  uint64_t line = 0;       // from 1
};

// Stateless; any thread. `where`: the list, for messages.

// One picture a line: its path and its class, separated by a tab (`csv`: a comma, and fields may stand in quotes). A
// byte order mark, carriage returns, empty lines and a first line that begins with the word path, file, filename or
// image are no pictures. `labelled` false: the class may be missing and is not read. kDataLoss: a line of another form.
// kFailedPrecondition: a path that occurs twice.
StatusOr<std::vector<ListedImage>> ParseImageList(std::string_view text, bool csv, bool labelled,
                                                  const std::string& where);

// The labels. Where all classes are whole numbers from 0, without signs and leading zeros, they are the labels
// themselves, and `names` is empty; where none is, `names` gets them in alphabetical (byte) order, and a label is a
// place there. kFailedPrecondition: some are numbers and some are not. kDataLoss: a number over 2^24.
StatusOr<std::vector<int64_t>> ClassesOfList(const std::vector<ListedImage>& images, const std::string& where,
                                             std::vector<std::string>* names);

}  // namespace distill

#endif  // DISTILL_STUDENT_WORKER_DATA_IMAGE_LIST_H_
