// The files that a pattern of data.pairs names.
#ifndef DISTILL_STUDENT_WORKER_DATA_PATTERN_FILES_H_
#define DISTILL_STUDENT_WORKER_DATA_PATTERN_FILES_H_

#include <map>
#include <string>
#include <vector>

#include "common/plan/path_pattern.h"
#include "common/status.h"
#include "student_worker/data/data_report.h"
#include "student_worker/data/image_source.h"

namespace distill {

struct PatternFiles {
  // By what the stars stand for, joined by '/'. ImageFile.name is the path below the folder.
  std::map<std::string, ImageFile> matches;
  std::vector<std::string> others;  // paths of pictures that lie in the folders of the matches and do not match
  std::string missing;              // a folder of the pattern that is not there, where this leaves no match
};

// Looks below `folder`. Litter (IsLitterName) does not match a star; symbolic links are followed. Refused in `report`,
// by name: links to nothing and out of `root`, and what matches but is no file; it counts as a match. kNotFound,
// kUnavailable: the disk failed. kCancelled: report->wanted(). Stateless; any thread.
StatusOr<PatternFiles> FindPatternFiles(const std::string& root, const std::string& folder, const PathPattern& pattern,
                                        DataReport* report);

}  // namespace distill

#endif  // DISTILL_STUDENT_WORKER_DATA_PATTERN_FILES_H_
