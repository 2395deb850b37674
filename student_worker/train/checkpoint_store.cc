#include "student_worker/train/checkpoint_store.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cinttypes>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <random>
#include <system_error>

#include "common/file_error.h"
#include "common/hash/sha256.h"
#include "common/str_cat.h"

namespace distill {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr char kModelFile[] = "model.safetensors";
constexpr char kOptimizerFile[] = "optimizer.safetensors";
constexpr char kStateFile[] = "state.json";
constexpr char kManifestFile[] = "manifest.json";
constexpr char kFenceFile[] = "generation";
constexpr int kFormatVersion = 3;
constexpr size_t kKeepNewest = 2;

Status WorkFolderError(int error, std::string_view action, const std::string& path) {
  return FileError(error, action, path, "another --work-dir");
}

Status SyncFolder(const std::string& path) {
  const int fd = open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) return WorkFolderError(errno, "open folder", path);
  const int result = fsync(fd);
  const int error = errno;
  close(fd);
  return result == 0 ? OkStatus() : WorkFolderError(error, "fsync folder", path);
}

StatusOr<std::string> ReadText(const std::string& path) {
  const StatusOr<Buffer> bytes = ReadRegularFile(path);
  if (!bytes.ok()) return absl::DataLossError(bytes.status().message());
  return std::string(reinterpret_cast<const char*>(bytes->data), bytes->size);
}

json ScoreToJson(const Score& score) {
  json metrics = json::array();  // in their order, which an object would not keep
  for (const NamedNumber& metric : score.metrics) metrics.push_back({metric.name, metric.value});
  return {{"metrics", metrics},
          {"labelled", score.by_class.labelled},
          {"answered", score.by_class.answered},
          {"right", score.by_class.right},
          {"confusion", score.by_class.confusion}};
}

Score ScoreFromJson(const json& object) {
  Score score;
  for (const json& metric : object.at("metrics")) {
    score.metrics.push_back({metric.at(0).get<std::string>(), metric.at(1).get<double>()});
  }
  score.by_class.labelled = object.at("labelled").get<std::vector<uint64_t>>();
  score.by_class.answered = object.at("answered").get<std::vector<uint64_t>>();
  score.by_class.right = object.at("right").get<std::vector<uint64_t>>();
  score.by_class.confusion = object.at("confusion").get<std::vector<uint64_t>>();
  return score;
}

std::string StateToJson(const CheckpointState& s) {
  const json object = {{"format", kFormatVersion},
                       {"job_id", s.job_id},
                       {"plan_digest", s.plan_digest},
                       {"stage", s.stage},
                       {"step", s.step},
                       {"total_step", s.total_step},
                       {"stage_end", s.stage_end},
                       {"skipped_steps", s.skipped_steps},
                       {"total_skipped_steps", s.total_skipped_steps},
                       {"seed", s.seed},
                       {"world_size", s.world_size},
                       {"threads", s.threads},
                       {"generation", s.generation},
                       {"score", ScoreToJson(s.score)},
                       {"teacher_score", ScoreToJson(s.teacher_score)},
                       {"loss", s.loss}};
  return object.dump() + "\n";  // on one line: a matrix of classes has many numbers
}

StatusOr<CheckpointState> StateFromJson(const std::string& text, const std::string& path) {
  // nlohmann reports by exception; none leaves this function.
  try {
    const json object = json::parse(text);
    if (object.at("format").get<int>() != kFormatVersion) {
      return absl::DataLossError(
          StrCat(path, " has format ", object.at("format").get<int>(), "; this program reads format ", kFormatVersion));
    }
    CheckpointState s;
    s.job_id = object.at("job_id").get<std::string>();
    s.plan_digest = object.at("plan_digest").get<std::string>();
    s.stage = object.at("stage").get<uint32_t>();
    s.step = object.at("step").get<uint64_t>();
    s.total_step = object.at("total_step").get<uint64_t>();
    s.stage_end = object.at("stage_end").get<bool>();
    s.skipped_steps = object.at("skipped_steps").get<uint64_t>();
    s.total_skipped_steps = object.at("total_skipped_steps").get<uint64_t>();
    s.seed = object.at("seed").get<uint64_t>();
    s.world_size = object.at("world_size").get<uint32_t>();
    s.threads = object.at("threads").get<uint32_t>();
    s.generation = object.at("generation").get<uint64_t>();
    s.score = ScoreFromJson(object.at("score"));
    s.teacher_score = ScoreFromJson(object.at("teacher_score"));
    s.loss = object.at("loss").get<double>();
    return s;
  } catch (const json::exception& error) {
    return absl::DataLossError(StrCat(path, " does not parse: ", error.what()));
  }
}

struct FolderName {
  uint32_t stage = 0;
  uint64_t step = 0;
  uint64_t writer = 0;
  std::string name;
};

std::string NameOf(uint32_t stage, uint64_t step, uint64_t writer) {
  return StrCat("stage-", stage, "-step-", step, "-gen-", writer);
}

bool ParseName(const std::string& name, FolderName* out) {
  char rest = 0;
  if (std::sscanf(name.c_str(), "stage-%" SCNu32 "-step-%" SCNu64 "-gen-%" SCNu64 "%c", &out->stage, &out->step,
                  &out->writer, &rest) != 3) {
    return false;
  }
  out->name = name;
  return NameOf(out->stage, out->step, out->writer) == name;
}

// Newest first: what a later writer made goes on from what it found, whatever an older one added to it since.
StatusOr<std::vector<FolderName>> ListFolders(const std::string& root) {
  std::vector<FolderName> folders;
  std::error_code error;
  for (fs::directory_iterator it(root, error), end; !error && it != end; it.increment(error)) {
    FolderName folder;
    if (ParseName(it->path().filename().string(), &folder)) folders.push_back(folder);
  }
  if (error) return WorkFolderError(error.value(), "list", root);
  std::sort(folders.begin(), folders.end(), [](const FolderName& a, const FolderName& b) {
    return std::tie(a.writer, a.stage, a.step) > std::tie(b.writer, b.stage, b.step);
  });
  return folders;
}

// The writer's number in a fence's text; 0: there is no fence, or it is damaged.
uint64_t WriterIn(const std::string& fence) {
  uint64_t writer = 0;
  return std::sscanf(fence.c_str(), "%" SCNu64, &writer) == 1 ? writer : 0;
}

// Whether the folder's own state says that its stage is complete. Unreadable ones count as not.
bool IsStageEnd(const std::string& folder) {
  const auto text = ReadText(StrCat(folder, "/", kStateFile));
  if (!text.ok()) return false;
  const auto state = StateFromJson(*text, folder);
  return state.ok() && state->stage_end;
}

Status WriteFiles(const std::string& folder, const Checkpoint& checkpoint) {
  DISTILL_RETURN_IF_ERROR(WriteSafetensors(StrCat(folder, "/", kModelFile), checkpoint.model));
  DISTILL_RETURN_IF_ERROR(WriteSafetensors(StrCat(folder, "/", kOptimizerFile), checkpoint.optimizer));
  DISTILL_RETURN_IF_ERROR(WriteFileAtomically(StrCat(folder, "/", kStateFile), StateToJson(checkpoint.state)));
  json files = json::object();
  for (const char* name : {kModelFile, kOptimizerFile, kStateFile}) {
    const std::string path = StrCat(folder, "/", name);
    DISTILL_ASSIGN_OR_RETURN(const std::string digest, Sha256File(path));
    std::error_code error;
    const uint64_t bytes = fs::file_size(path, error);
    if (error) return WorkFolderError(error.value(), "read the size of", path);
    files[name] = {{"bytes", bytes}, {"sha256", digest}};
  }
  const json manifest = {{"format", kFormatVersion}, {"files", files}};
  return WriteFileAtomically(StrCat(folder, "/", kManifestFile), manifest.dump(2) + "\n");
}

}  // namespace

StatusOr<CheckpointStore> CheckpointStore::Open(const std::string& root) {
  std::error_code error;
  fs::create_directories(root, error);
  if (error) return WorkFolderError(error.value(), "make the folder", root);
  if (!fs::is_directory(root, error)) return WorkFolderError(ENOTDIR, "use", root);
  return CheckpointStore(root);
}

Status CheckpointStore::WriteFence() const { return WriteFileAtomically(StrCat(root_, "/", kFenceFile), fence_); }

Status CheckpointStore::Claim(uint64_t generation) {
  // The number is above that of all folders too, should the fence's file have been lost.
  uint64_t last = 0;
  if (const auto fence = ReadText(StrCat(root_, "/", kFenceFile)); fence.ok()) last = WriterIn(*fence);
  DISTILL_ASSIGN_OR_RETURN(const std::vector<FolderName> folders, ListFolders(root_));
  if (!folders.empty()) last = std::max(last, folders[0].writer);
  std::random_device random;
  writer_ = std::max(generation, last + 1);
  fence_ = StrCat(writer_, " ", random(), "-", random(), "\n");
  const Status written = WriteFence();
  if (!written.ok()) writer_ = 0;
  return Annotate(written, "the checkpoints' folder could not be taken over");
}

Status CheckpointStore::CheckClaim() const {
  if (writer_ == 0) return absl::FailedPreconditionError(StrCat(root_, " was not claimed"));
  std::error_code error;
  if (!fs::exists(StrCat(root_, "/", kFenceFile), error)) {
    fs::create_directories(root_, error);
    if (error) return WorkFolderError(error.value(), "make the folder", root_);
    return WriteFence();
  }
  DISTILL_ASSIGN_OR_RETURN(const std::string fence, ReadText(StrCat(root_, "/", kFenceFile)));
  if (fence == fence_) return OkStatus();
  return absl::AbortedError(StrCat("generation ", WriterIn(fence), " of the job writes to ", root_, " now; this one, ",
                                   writer_, ", is over"));
}

StatusOr<StoredCheckpoint> CheckpointStore::Write(const Checkpoint& checkpoint) {
  DISTILL_RETURN_IF_ERROR(CheckClaim());
  const CheckpointState& state = checkpoint.state;
  const std::string temporary = StrCat(root_, "/.tmp-", writer_);
  StoredCheckpoint stored;
  stored.path = StrCat(root_, "/", NameOf(state.stage, state.step, writer_));
  std::error_code error;
  // A stop at a step whose checkpoint was due anyway. The name bears this writer's number: nobody else made it.
  if (const auto same = Load(stored.path); same.ok()) {
    stored.digest = same->digest;
    return stored;
  }
  fs::remove_all(temporary, error);
  const auto not_written = [&](const Status& status) {
    fs::remove_all(temporary, error);
    return Annotate(status, StrCat("checkpoint of stage ", state.stage, " step ", state.step, " was not written"));
  };
  if (mkdir(temporary.c_str(), 0777) != 0) return not_written(WorkFolderError(errno, "make the folder", temporary));
  if (Status status = WriteFiles(temporary, checkpoint); !status.ok()) return not_written(status);
  if (Status status = SyncFolder(temporary); !status.ok()) return not_written(status);
  const StatusOr<std::string> digest = Sha256File(StrCat(temporary, "/", kManifestFile));
  if (!digest.ok()) return not_written(digest.status());
  stored.digest = *digest;
  if (Status status = CheckClaim(); !status.ok()) return not_written(status);
  // rename() replaces only empty folders; what lies there is damaged.
  fs::remove_all(stored.path, error);
  if (rename(temporary.c_str(), stored.path.c_str()) != 0) {
    return not_written(WorkFolderError(errno, "rename to", stored.path));
  }
  DISTILL_RETURN_IF_ERROR(SyncFolder(root_));
  Prune();
  return stored;
}

StatusOr<StoredCheckpoint> CheckpointStore::Load(const std::string& path) {
  StoredCheckpoint stored;
  stored.path = path;
  DISTILL_ASSIGN_OR_RETURN(const std::string manifest_text, ReadText(StrCat(path, "/", kManifestFile)));
  stored.digest = Sha256Hex(manifest_text);
  try {
    const json manifest = json::parse(manifest_text);
    if (manifest.at("format").get<int>() != kFormatVersion) {
      return absl::DataLossError(
          StrCat(path, "/", kManifestFile, " has an unknown format; this program reads format ", kFormatVersion));
    }
    for (const char* name : {kModelFile, kOptimizerFile, kStateFile}) {
      const json& entry = manifest.at("files").at(name);
      const std::string file = StrCat(path, "/", name);
      std::error_code error;
      const uint64_t bytes = fs::file_size(file, error);
      if (error) return absl::DataLossError(StrCat(file, " is missing"));
      if (bytes != entry.at("bytes").get<uint64_t>()) {
        return absl::DataLossError(
            StrCat(file, " has ", bytes, " bytes, the manifest says ", entry.at("bytes").get<uint64_t>()));
      }
      DISTILL_ASSIGN_OR_RETURN(const std::string digest, Sha256File(file));
      if (digest != entry.at("sha256").get<std::string>()) {
        return absl::DataLossError(
            StrCat(file, " has sha256 ", digest, ", the manifest says ", entry.at("sha256").get<std::string>()));
      }
    }
  } catch (const json::exception& error) {
    return absl::DataLossError(StrCat(path, "/", kManifestFile, " does not parse: ", error.what()));
  }
  DISTILL_ASSIGN_OR_RETURN(const std::string state_text, ReadText(StrCat(path, "/", kStateFile)));
  DISTILL_ASSIGN_OR_RETURN(stored.checkpoint.state, StateFromJson(state_text, StrCat(path, "/", kStateFile)));
  DISTILL_ASSIGN_OR_RETURN(stored.checkpoint.model, ReadSafetensors(StrCat(path, "/", kModelFile)));
  DISTILL_ASSIGN_OR_RETURN(stored.checkpoint.optimizer, ReadSafetensors(StrCat(path, "/", kOptimizerFile)));
  return stored;
}

StatusOr<std::optional<StoredCheckpoint>> CheckpointStore::LoadNewest(const std::string& job_id,
                                                                      const std::string& plan_digest,
                                                                      std::vector<std::string>* skipped) const {
  DISTILL_ASSIGN_OR_RETURN(const std::vector<FolderName> folders, ListFolders(root_));
  for (const FolderName& folder : folders) {
    const std::string path = StrCat(root_, "/", folder.name);
    auto stored = Load(path);
    std::string reason;
    if (!stored.ok()) {
      reason = std::string(ToStd(stored.status().message()));
    } else if (const CheckpointState& state = stored->checkpoint.state;
               state.job_id != job_id || state.plan_digest != plan_digest) {
      reason = StrCat(path, " belongs to job ", state.job_id, " with plan ", state.plan_digest, "; this is job ",
                      job_id, " with plan ", plan_digest);
    } else {
      return std::optional<StoredCheckpoint>(std::move(*stored));
    }
    if (skipped != nullptr) skipped->push_back(reason);
  }
  return std::optional<StoredCheckpoint>();
}

std::optional<std::string> CheckpointStore::Find(uint32_t stage, const std::string& digest) const {
  const auto folders = ListFolders(root_);
  if (!folders.ok()) return std::nullopt;
  for (const FolderName& folder : *folders) {
    if (folder.stage != stage) continue;
    std::string path = StrCat(root_, "/", folder.name);
    const auto manifest = ReadText(StrCat(path, "/", kManifestFile));
    if (manifest.ok() && Sha256Hex(*manifest) == digest) return path;
  }
  return std::nullopt;
}

void CheckpointStore::Prune() const {
  // Best effort: what cannot be removed now is removed after a later checkpoint.
  std::error_code error;
  if (const auto folders = ListFolders(root_); folders.ok()) {
    size_t kept = 0;
    for (const FolderName& folder : *folders) {
      const std::string path = StrCat(root_, "/", folder.name);
      if (folder.writer > writer_ || kept++ < kKeepNewest || IsStageEnd(path)) continue;
      if (!CheckClaim().ok()) return;  // a later writer may have begun to go on from one of these
      fs::remove_all(path, error);
    }
  }
  for (fs::directory_iterator it(root_, error), end; !error && it != end; it.increment(error)) {
    uint64_t other = 0;
    char rest = 0;
    const std::string name = it->path().filename().string();
    if (std::sscanf(name.c_str(), ".tmp-%" SCNu64 "%c", &other, &rest) == 1 && other < writer_) {
      std::error_code ignored;
      fs::remove_all(it->path(), ignored);
    }
  }
}

}  // namespace distill
