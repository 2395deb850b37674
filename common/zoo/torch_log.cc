#include "common/zoo/torch_log.h"

#include <c10/util/Exception.h>
#include <c10/util/Logging.h>

#include "common/log.h"

namespace distill {
namespace {

class LogWarningHandler : public c10::WarningHandler {
 public:
  void process(const c10::Warning& warning) override {
    LogDebug(
        "torch warns",
        {{"text", warning.msg()}, {"file", warning.source_location().file}, {"line", warning.source_location().line}});
  }
};

}  // namespace

void SendTorchWarningsToLog() {
  static LogWarningHandler handler;  // trivially usable until the process ends
  c10::WarningUtils::set_warning_handler(&handler);
}

}  // namespace distill
