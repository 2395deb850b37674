#include "student_worker/feature/feature_request.h"

#include "common/str_cat.h"

namespace distill {
namespace {

constexpr int kChances = 3;  // errors of one teacher that may have passed the next time

}  // namespace

bool IsRefusal(const Status& status) {
  switch (status.code()) {
    case StatusCode::kInvalidArgument:
    case StatusCode::kNotFound:
    case StatusCode::kFailedPrecondition:
    case StatusCode::kUnauthenticated:
    case StatusCode::kPermissionDenied:
    case StatusCode::kUnimplemented:
    case StatusCode::kOutOfRange:
      return true;
    default:
      return false;
  }
}

void FeatureRequest::Note(const std::string& address, const std::string& teacher, const Status& status, bool not_finite,
                          Time now) {
  Said& entry = said[address];
  entry.teacher = teacher;
  entry.status = status;
  entry.not_finite = not_finite;
  ++entry.times;
  if (!first_said.has_value()) first_said = now;
}

bool FeatureRequest::Exhausted(const std::string& address) const {
  const auto it = said.find(address);
  if (it == said.end()) return false;
  return it->second.not_finite || IsRefusal(it->second.status) || it->second.times >= kChances;
}

std::string FeatureRequest::What() const { return StrCat("features of step ", id); }

Status FeatureRequest::Verdict() const {
  std::string text;
  StatusCode code = said.begin()->second.status.code();
  for (const auto& [address, entry] : said) {
    if (entry.status.code() != code) code = StatusCode::kInternal;
    StrAppend(&text, text.empty() ? "" : "; ", entry.teacher,
              entry.times > 1 ? StrCat(", ", entry.times, " times") : "", ": ", entry.status.message());
  }
  return Status(code, ToAbsl(StrCat(What(), ": no teacher could compute them: ", text)));
}

}  // namespace distill
