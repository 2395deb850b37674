// Command-line overrides of a job file: "stages.1.steps=3" sets one value before the file is validated.
#ifndef DISTILL_COORDINATOR_JOBFILE_YAML_OVERRIDE_H_
#define DISTILL_COORDINATOR_JOBFILE_YAML_OVERRIDE_H_

#include "coordinator/jobfile/problems.h"
#include "coordinator/jobfile/yaml_tree.h"

namespace distill {

// A copy of `root` with the override number `index` of the problems' source applied; shared parts stay shared, so a
// value reached through an alias changes only where the path leads. Path parts are keys of maps (made when absent) or
// positions in lists, from 0. The value is YAML ("[conv1, bn1]", "{type: adam}", "3"); with the value null the key
// counts as not given (SectionReader). Null with a problem: no '=', empty part, position outside the list, or a path
// through a plain value.
YamlNodePtr ApplyOverride(const YamlNodePtr& root, int index, Problems* problems);

}  // namespace distill

#endif  // DISTILL_COORDINATOR_JOBFILE_YAML_OVERRIDE_H_
