#include "student_worker/train/data_agreement.h"

#include <algorithm>
#include <cstdlib>

#include "absl/strings/str_replace.h"
#include "common/failure_kind.h"
#include "common/hash/sha256.h"
#include "common/str_cat.h"

namespace distill {
namespace {

// A sum of doubles carries whole numbers of up to 53 bits without loss: twelve hexadecimal digits at a time.
constexpr size_t kDigitsAtOnce = 12;
constexpr size_t kDigestDigits = 64;
constexpr size_t kPieces = (kDigestDigits + kDigitsAtOnce - 1) / kDigitsAtOnce;
constexpr size_t kNumbers = kPieces + 4;
constexpr size_t kWarningsCompared = 32;

void Pack(const DataIndex& index, double* out) {
  std::string digest = index.digest;
  digest.resize(kDigestDigits, '0');
  for (size_t i = 0; i < kPieces; ++i) {
    const std::string piece = digest.substr(i * kDigitsAtOnce, kDigitsAtOnce);
    out[i] = static_cast<double>(std::strtoull(piece.c_str(), nullptr, 16));
  }
  const uint64_t counts[] = {index.train, index.test, index.unlabelled, index.classes};
  for (size_t i = 0; i < 4; ++i) out[kPieces + i] = static_cast<double>(counts[i]);
}

// The digest comes back as text that is equal where the digests are.
DataIndex Unpack(const double* in) {
  DataIndex index;
  for (size_t i = 0; i < kPieces; ++i) StrAppend(&index.digest, i == 0 ? "" : ".", static_cast<uint64_t>(in[i]));
  index.train = static_cast<uint64_t>(in[kPieces]);
  index.test = static_cast<uint64_t>(in[kPieces + 1]);
  index.unlabelled = static_cast<uint64_t>(in[kPieces + 2]);
  index.classes = static_cast<uint64_t>(in[kPieces + 3]);
  return index;
}

std::string RankList(const std::vector<uint32_t>& ranks) {
  std::string text = ranks.size() == 1 ? "rank " : "ranks ";
  for (size_t i = 0; i < ranks.size(); ++i) StrAppend(&text, i == 0 ? "" : ", ", ranks[i]);
  return text;
}

// "54 training images instead of 60, 3 classes instead of 2".
std::string Differences(const DataIndex& own, const DataIndex& right) {
  std::string text;
  const auto compare = [&](const char* what, uint64_t here, uint64_t there) {
    if (here != there) StrAppend(&text, text.empty() ? "" : ", ", here, " ", what, " instead of ", there);
  };
  compare("training images", own.train, right.train);
  compare("test images", own.test, right.test);
  compare("images without labels", own.unlabelled, right.unlabelled);
  compare("classes", own.classes, right.classes);
  if (text.empty()) text = "as many images and classes, but other names, labels, sizes or another order";
  return text;
}

// Never 0, which stands for no warning.
double DigestOf(const std::string& warning, const std::string& data_root) {
  Sha256 hash;
  hash.Update(data_root.empty() ? warning : absl::StrReplaceAll(warning, {{data_root, ""}}));
  return 1.0 + static_cast<double>(std::strtoull(hash.HexDigest().substr(0, kDigitsAtOnce).c_str(), nullptr, 16));
}

}  // namespace

DataIndex IndexOf(const DataSplits& data) {
  DataIndex index;
  index.digest = data.digest;
  if (data.train != nullptr) index.train = data.train->size();
  if (data.test != nullptr) index.test = data.test->size();
  if (data.unlabelled != nullptr) index.unlabelled = data.unlabelled->size();
  if (data.test != nullptr) index.classes = data.test->classes();
  return index;
}

Status JudgeData(const std::vector<DataIndex>& ranks, uint32_t self) {
  size_t right = 0;
  const auto votes = [&](size_t rank) { return std::count(ranks.begin(), ranks.end(), ranks[rank]); };
  for (size_t rank = 1; rank < ranks.size(); ++rank) {
    if (votes(rank) > votes(right)) right = rank;
  }
  std::vector<uint32_t> same, others;
  for (uint32_t rank = 0; rank < ranks.size(); ++rank) (ranks[rank] == ranks[right] ? same : others).push_back(rank);
  if (others.empty()) return OkStatus();
  if (ranks[self] == ranks[right]) {
    return absl::AbortedError(StrCat(RankList(others), " loaded another data set; reported there"));
  }
  return WithKind(absl::FailedPreconditionError(StrCat("this worker's data set is not that of ", RankList(same), ": ",
                                                       Differences(ranks[self], ranks[right]),
                                                       "; give all students the same files below --data-root")),
                  FailureKind::kWorker);
}

Status AgreeOnData(const DataIndex& own, Lockstep* lockstep) {
  const size_t ranks = lockstep->group()->world_size(), self = lockstep->group()->rank();
  if (ranks == 1) return OkStatus();
  std::vector<double> numbers(ranks * kNumbers, 0.0);  // each rank fills in its own part
  Pack(own, &numbers[self * kNumbers]);
  DISTILL_ASSIGN_OR_RETURN(Lockstep::Round round,
                           lockstep->Meet({.failed = false, .waiting = false, .values = std::move(numbers)}));
  std::vector<DataIndex> all;
  for (size_t rank = 0; rank < ranks; ++rank) all.push_back(Unpack(&round.sums[rank * kNumbers]));
  const Status verdict = JudgeData(all, static_cast<uint32_t>(self));
  // So that the others know that it is reported.
  DISTILL_RETURN_IF_ERROR(
      lockstep
          ->Meet({.failed = !verdict.ok() && verdict.code() != StatusCode::kAborted, .waiting = false, .values = {}})
          .status());
  return verdict;
}

StatusOr<std::vector<std::string>> NotSaidByLeader(const std::vector<std::string>& warnings,
                                                   const std::string& data_root, Lockstep* lockstep) {
  std::vector<std::string> news;
  if (lockstep->group()->world_size() == 1) return news;
  std::vector<double> said(kWarningsCompared, 0.0);
  const bool leader = lockstep->group()->rank() == 0;
  for (size_t i = 0; leader && i < std::min(warnings.size(), said.size()); ++i) {
    said[i] = DigestOf(warnings[i], data_root);
  }
  DISTILL_ASSIGN_OR_RETURN(const Lockstep::Round round,
                           lockstep->Meet({.failed = false, .waiting = false, .values = std::move(said)}));
  if (leader) return news;
  for (const std::string& warning : warnings) {
    const double digest = DigestOf(warning, data_root);
    if (std::find(round.sums.begin(), round.sums.end(), digest) == round.sums.end()) news.push_back(warning);
  }
  return news;
}

}  // namespace distill
