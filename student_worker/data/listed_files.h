// Files that a text file names one by one, looked up where they should lie.
#ifndef DISTILL_STUDENT_WORKER_DATA_LISTED_FILES_H_
#define DISTILL_STUDENT_WORKER_DATA_LISTED_FILES_H_

#include <map>
#include <string>

#include "student_worker/data/image_source.h"
#include "student_worker/data/split_request.h"

namespace distill {

// Thread-compatible.
class ListedFiles {
 public:
  // `what` they are, for messages: "listed pictures"; `remedy` where they do not exist. The request outlives this.
  ListedFiles(const SplitRequest& request, std::string what, std::string remedy)
      : request_(request), what_(std::move(what)), remedy_(std::move(remedy)) {}

  // The file `path`, which begins at request.folder or is absolute. Where there is none that may be read it is
  // `refused`, and the request's report is told so, with `detail` (the place in the list).
  ImageFile Find(const std::string& path, const std::string& detail);

 private:
  const SplitRequest& request_;
  const std::string what_, remedy_;
  std::map<std::string, bool> inside_;  // by folder or link: whether it leads to a place below the root
};

}  // namespace distill

#endif  // DISTILL_STUDENT_WORKER_DATA_LISTED_FILES_H_
