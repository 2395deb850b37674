#include "student_worker/train/form_group.h"

#include <algorithm>
#include <map>

#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "common/str_cat.h"

namespace distill {
namespace {

using Clock = std::chrono::steady_clock;

std::string ArrivalKey(uint32_t rank) { return StrCat("arrived/", rank); }

// One line a field, in the order of the struct.
std::string Encode(const RankIdentity& rank) {
  return StrCat(rank.worker_id, "\n", rank.host, "\n", rank.device, "\n", rank.device_id);
}

StatusOr<RankIdentity> Decode(uint32_t rank, const std::string& text) {
  std::vector<std::string> fields = absl::StrSplit(text, '\n');
  if (fields.size() != 4) {
    return absl::FailedPreconditionError(StrCat("rank ", rank, " introduced itself with ", fields.size(),
                                                " fields, not 4; run the same release on all workers"));
  }
  return RankIdentity{std::move(fields[0]), std::move(fields[1]), std::move(fields[2]), std::move(fields[3])};
}

bool OnGpu(const RankIdentity& rank) { return rank.device != "cpu"; }

std::string Describe(uint32_t index, const RankIdentity& rank) {
  return StrCat("rank ", index, " (", rank.worker_id, " at ", rank.host, ")");
}

std::string RanksText(const std::vector<uint32_t>& ranks) {
  return StrCat(ranks.size() == 1 ? "rank " : "ranks ", absl::StrJoin(ranks, ", "));
}

// The coordinator's kAborted: a newer generation exists, whose assignment is on its way. That is a revocation, not a
// failure.
Status EndedIfAborted(const Status& status) {
  return status.code() == StatusCode::kAborted ? absl::CancelledError(status.message()) : status;
}

// Of all ranks, in order, once each has arrived.
class Arrival {
 public:
  Arrival(const FormGroupOptions& options, KvClient* store, const JobControl* control)
      : options_(options), store_(store), control_(control) {
    for (uint32_t rank = 0; rank < options.world_size; ++rank) keys_.push_back(ArrivalKey(rank));
  }

  StatusOr<std::vector<RankIdentity>> Await() {
    const auto start = Clock::now();
    while (true) {
      if (control_->revoked() || control_->cancelled() || control_->terminating()) {
        return absl::CancelledError("stopped while waiting for the other ranks");
      }
      auto ranks = Round();
      if (ranks.ok()) return ranks;
      const StatusCode code = ranks.status().code();
      if (code != StatusCode::kDeadlineExceeded && code != StatusCode::kUnavailable) {
        return EndedIfAborted(ranks.status());
      }
      if (options_.on_waiting) {
        options_.on_waiting(code == StatusCode::kUnavailable ? "waiting for the coordinator" : MissingText(),
                            std::chrono::duration<double>(Clock::now() - start).count());
      }
    }
  }

 private:
  // kDeadlineExceeded: not all are there; kUnavailable: the coordinator is away.
  StatusOr<std::vector<RankIdentity>> Round() {
    missing_.clear();
    // Set() repeats itself for half a minute while the coordinator is away, and a stop must not wait for that: so ask
    // first whether somebody answers.
    Status there = store_->Wait({keys_[options_.rank]}, std::chrono::milliseconds(0));
    if (there.code() == StatusCode::kUnavailable) there = store_->Wait({keys_[options_.rank]}, options_.round);
    if (!there.ok() && there.code() != StatusCode::kDeadlineExceeded) return there;
    DISTILL_RETURN_IF_ERROR(store_->Set(keys_[options_.rank], Encode(options_.self)));
    const Status arrived = store_->Wait(keys_, options_.round);
    std::vector<RankIdentity> ranks;
    for (uint32_t rank = 0; rank < options_.world_size; ++rank) {
      const auto text = store_->Get(keys_[rank], std::chrono::milliseconds(0));
      if (text.status().code() == StatusCode::kDeadlineExceeded) {
        missing_.push_back(rank);
        continue;
      }
      DISTILL_RETURN_IF_ERROR(text.status());
      DISTILL_ASSIGN_OR_RETURN(RankIdentity identity, Decode(rank, *text));
      ranks.push_back(std::move(identity));
    }
    if (missing_.empty()) return ranks;
    if (!arrived.ok()) return arrived;
    return absl::DeadlineExceededError("a key that was there is gone");  // the coordinator was restarted just now
  }

  std::string MissingText() const {
    return missing_.empty() ? "waiting for the other ranks" : StrCat("waiting for ", RanksText(missing_));
  }

  const FormGroupOptions& options_;
  KvClient* const store_;            // not owned: the caller's
  const JobControl* const control_;  // not owned: the caller's
  std::vector<std::string> keys_;    // by rank
  std::vector<uint32_t> missing_;    // in the last round, as far as that could be asked
};

}  // namespace

DeviceVerdict JudgeDevices(const std::vector<RankIdentity>& ranks) {
  DeviceVerdict verdict;
  const size_t gpus = static_cast<size_t>(std::count_if(ranks.begin(), ranks.end(), OnGpu));
  if (gpus > 0 && gpus < ranks.size()) {
    const bool want_gpu = 2 * gpus == ranks.size() ? OnGpu(ranks[0]) : 2 * gpus > ranks.size();
    std::vector<std::string> texts;
    for (uint32_t rank = 0; rank < ranks.size(); ++rank) {
      texts.push_back(StrCat(Describe(rank, ranks[rank]), " on ", ranks[rank].device));
      if (OnGpu(ranks[rank]) != want_gpu) verdict.odd.push_back(rank);
    }
    verdict.reason = StrCat("the ranks of a job compute all on GPUs or all on CPUs, but here are ",
                            absl::StrJoin(texts, ", "), "; give the job `device: cpu` or `device: cuda`, or start ",
                            RanksText(verdict.odd), " with --device ", want_gpu ? "cuda" : "cpu");
    return verdict;
  }
  std::map<std::string, uint32_t> first;  // by GPU, the rank that has it
  std::vector<std::string> texts;
  for (uint32_t rank = 0; rank < ranks.size(); ++rank) {
    if (ranks[rank].device_id.empty()) continue;
    const auto [it, inserted] = first.emplace(ranks[rank].device_id, rank);
    if (inserted) continue;
    verdict.odd.push_back(rank);
    texts.push_back(StrCat(Describe(it->second, ranks[it->second]), " and ", Describe(rank, ranks[rank]),
                           " share the GPU ", ranks[rank].device_id));
  }
  if (!texts.empty()) {
    verdict.reason = StrCat(absl::StrJoin(texts, "; "), ". Each rank needs one of its own: give every distill-student",
                            " of a machine another --device cuda:N, or another CUDA_VISIBLE_DEVICES");
  }
  return verdict;
}

StatusOr<std::shared_ptr<CollectiveGroup>> FormGroup(const FormGroupOptions& options,
                                                     const std::shared_ptr<KvClient>& store, JobControl* control) {
  if (options.world_size > 1) {
    if (store == nullptr) {
      return absl::InvalidArgumentError(StrCat("a group of ", options.world_size, " ranks needs a store"));
    }
    DISTILL_ASSIGN_OR_RETURN(const std::vector<RankIdentity> ranks, Arrival(options, store.get(), control).Await());
    const DeviceVerdict verdict = JudgeDevices(ranks);
    if (std::find(verdict.odd.begin(), verdict.odd.end(), options.rank) != verdict.odd.end()) {
      return absl::FailedPreconditionError(verdict.reason);
    }
    if (!verdict.odd.empty()) {
      return absl::CancelledError(StrCat(RanksText(verdict.odd), " cannot join: ", verdict.reason));
    }
  }
  CollectiveGroup::Options group_options;
  group_options.rank = options.rank;
  group_options.world_size = options.world_size;
  group_options.device = options.self.device;
  group_options.host = options.self.host;
  group_options.timeout = options.collective_timeout;
  DISTILL_ASSIGN_OR_RETURN(std::shared_ptr<CollectiveGroup> group, CollectiveGroup::Create(group_options, store));
  // Before it connects, which can take long when a rank is lost meanwhile.
  control->SetAbort([group] { group->Abort(); });
  const Status connected = group->Connect();
  if (!connected.ok()) return control->revoked() ? absl::CancelledError("the assignment was revoked") : connected;
  return group;
}

}  // namespace distill
