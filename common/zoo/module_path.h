// Dotted paths of modules: "layer1.0.conv1".
#ifndef DISTILL_COMMON_ZOO_MODULE_PATH_H_
#define DISTILL_COMMON_ZOO_MODULE_PATH_H_

#include <string>
#include <string_view>

#include "common/str_cat.h"

namespace distill {

// `child` of the module at `parent`, whose path is "" for the network itself.
inline std::string JoinModulePath(std::string_view parent, std::string_view child) {
  return parent.empty() ? std::string(child) : StrCat(parent, ".", child);
}

}  // namespace distill

#endif  // DISTILL_COMMON_ZOO_MODULE_PATH_H_
