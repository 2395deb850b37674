#include "student_worker/data/data_report.h"

#include <algorithm>

#include "absl/strings/ascii.h"
#include "common/str_cat.h"

namespace distill {
namespace {

std::string Capital(std::string text) {
  if (!text.empty()) text[0] = absl::ascii_toupper(static_cast<unsigned char>(text[0]));
  return text;
}

}  // namespace

void DataReport::Add(const FileFault& fault, const std::string& file, const std::string& detail, Faults* faults) const {
  Files& files = (*faults)[fault];
  ++files.count;
  files.named.emplace(file, detail);
  if (files.named.size() > named_files_) files.named.erase(std::prev(files.named.end()));
}

std::string DataReport::Tell(const FileFault& fault, const Files& files, size_t most) {
  std::string text = StrCat(fault.what, ": ");
  size_t told = 0;
  for (const auto& [file, detail] : files.named) {
    if (told == most) break;
    StrAppend(&text, told == 0 ? "'" : ", '", file, "'");
    if (!detail.empty()) StrAppend(&text, " (", detail, ")");
    ++told;
  }
  if (files.count > told) StrAppend(&text, " and ", files.count - told, " more");
  if (!fault.remedy.empty()) StrAppend(&text, "; ", fault.remedy);
  return text;
}

Status DataReport::wanted() const {
  return stop_ && stop_() ? absl::CancelledError("stopped while the data set was loaded") : OkStatus();
}

void DataReport::Refuse(const FileFault& fault, const std::string& file, const std::string& detail) {
  absl::MutexLock lock(&mutex_);
  Add(fault, file, detail, &refused_);
}

void DataReport::Refuse(const Status& status) {
  absl::MutexLock lock(&mutex_);
  const bool told = std::find(refused_whole_.begin(), refused_whole_.end(), status) != refused_whole_.end();
  if (!told) refused_whole_.push_back(status);
}

void DataReport::Warn(const FileFault& fault, const std::string& file, const std::string& detail) {
  absl::MutexLock lock(&mutex_);
  Add(fault, file, detail, &warned_);
}

void DataReport::Warn(const std::string& sentence) {
  absl::MutexLock lock(&mutex_);
  sentences_.push_back(sentence);
}

uint64_t DataReport::refusals() const {
  absl::MutexLock lock(&mutex_);
  uint64_t count = refused_whole_.size();
  for (const auto& [fault, files] : refused_) count += files.count;
  return count;
}

DataReport::Told DataReport::TellMistakes() const {
  Told told;
  absl::MutexLock lock(&mutex_);
  for (const Status& status : refused_whole_) {
    if (told.code == StatusCode::kOk) told.code = status.code();
    told.texts.emplace_back(ToStd(status.message()));
    ++told.count;
  }
  // Told in the order of their first files. Each fault names at least one file.
  std::vector<const Faults::value_type*> faults;
  for (const auto& fault : refused_) faults.push_back(&fault);
  std::sort(faults.begin(), faults.end(), [](const auto* a, const auto* b) {
    return std::pair(*a->second.named.begin(), a->first) < std::pair(*b->second.named.begin(), b->first);
  });
  size_t spare = named_files_ - std::min(named_files_, faults.size());
  for (const auto* fault : faults) {
    const size_t more = std::min(spare, fault->second.named.size() - 1);
    spare -= more;
    if (told.code == StatusCode::kOk) told.code = fault->first.code;
    told.texts.push_back(Tell(fault->first, fault->second, 1 + more));
    told.count += fault->second.count;
  }
  return told;
}

Status DataReport::status() const {
  const Told told = TellMistakes();
  if (told.count == 0) return OkStatus();
  std::string text;
  if (told.texts.size() == 1) {
    text = told.texts[0];
  } else {
    text = StrCat(told.count, " mistakes in the data");
    for (const std::string& one : told.texts) StrAppend(&text, ". ", Capital(one));
  }
  // What was left out may be the reason: pictures of another format, for example.
  const std::vector<std::string> noticed = warnings();
  if (!noticed.empty()) text += ". Noticed besides:";
  for (const std::string& warning : noticed) StrAppend(&text, " ", warning);
  return Status(told.code, text);
}

std::vector<std::string> DataReport::mistakes() const {
  std::vector<std::string> texts;
  for (const std::string& text : TellMistakes().texts) texts.push_back(StrCat(Capital(text), "."));
  return texts;
}

std::vector<std::string> DataReport::warnings() const {
  absl::MutexLock lock(&mutex_);
  std::vector<std::string> texts = sentences_;
  for (const auto& [fault, files] : warned_)
    texts.push_back(StrCat(Capital(Tell(fault, files, named_in_warning_)), "."));
  return texts;
}

std::string NameSome(const std::vector<std::string>& names, size_t most) {
  std::string text;
  for (size_t i = 0; i < std::min(most, names.size()); ++i) StrAppend(&text, i == 0 ? "'" : ", '", names[i], "'");
  if (names.size() > most) StrAppend(&text, " and ", names.size() - most, " more");
  return text;
}

}  // namespace distill
