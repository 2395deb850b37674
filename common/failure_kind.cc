#include "common/failure_kind.h"

#include <string>

#include "absl/strings/cord.h"

namespace distill {
namespace {

constexpr char kKind[] = "distill/failure-kind";  // one digit
constexpr char kEndOfProcess[] = "distill/end-of-process";

}  // namespace

Status WithKind(Status status, FailureKind kind) {
  status.SetPayload(kKind, absl::Cord(std::to_string(static_cast<int>(kind))));
  return status;
}

std::optional<FailureKind> KindOf(const Status& status) {
  const auto payload = status.GetPayload(kKind);
  if (!payload.has_value()) return std::nullopt;
  return static_cast<FailureKind>(std::stoi(std::string(*payload)));
}

Status WithEndOfProcess(Status status) {
  status.SetPayload(kEndOfProcess, absl::Cord("1"));
  return status;
}

bool EndsProcess(const Status& status) { return status.GetPayload(kEndOfProcess).has_value(); }

}  // namespace distill
