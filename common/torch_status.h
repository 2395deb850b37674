// An exception thrown by torch as a Status. Only for sources that include torch.
#ifndef DISTILL_COMMON_TORCH_STATUS_H_
#define DISTILL_COMMON_TORCH_STATUS_H_

#include <c10/util/Exception.h>

#include <exception>
#include <string>

#include "common/status.h"
#include "common/str_cat.h"

namespace distill {

// The first line of the message, without torch's C++ backtrace.
inline std::string TorchMessage(const std::exception& error) {
  const auto* torch_error = dynamic_cast<const c10::Error*>(&error);
  std::string text = torch_error != nullptr ? torch_error->what_without_backtrace() : error.what();
  return text.substr(0, text.find('\n'));
}

// kResourceExhausted: out of memory; kInternal: anything else. `what` names the operation.
inline Status TorchStatus(const std::exception& error, std::string_view what) {
  const std::string message = StrCat(what, ": ", TorchMessage(error));
  const bool memory = dynamic_cast<const c10::OutOfMemoryError*>(&error) != nullptr ||
                      dynamic_cast<const std::bad_alloc*>(&error) != nullptr ||
                      message.find("not enough memory") != std::string::npos;  // how torch's CPU allocator puts it
  return memory ? absl::ResourceExhaustedError(message) : absl::InternalError(message);
}

}  // namespace distill

#endif  // DISTILL_COMMON_TORCH_STATUS_H_
