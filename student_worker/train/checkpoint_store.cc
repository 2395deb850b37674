#include "student_worker/train/checkpoint_store.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cinttypes>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <system_error>

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
constexpr int kFormatVersion = 1;
constexpr size_t kKeepNewest = 2;

// A failed file operation as a Status that says what a person can do about it.
Status FileError(int error, std::string_view what, const std::string& path) {
  const std::string text = StrCat(what, " ", path, ": ", std::strerror(error));
  switch (error) {
    case ENOSPC:
    case EDQUOT:
      return absl::ResourceExhaustedError(StrCat(text, "; free space there or choose another --work-dir"));
    case EACCES:
    case EPERM:
    case EROFS:
      return absl::PermissionDeniedError(StrCat(text, "; make the folder writable or choose another --work-dir"));
    case ENOENT:
      return absl::NotFoundError(text);
    case ENOTDIR:
    case EEXIST:
      return absl::InvalidArgumentError(StrCat(text, "; choose another --work-dir"));
    default:
      return absl::UnavailableError(text);
  }
}

Status SyncFolder(const std::string& path) {
  const int fd = open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) return FileError(errno, "cannot open folder", path);
  const int result = fsync(fd);
  const int error = errno;
  close(fd);
  return result == 0 ? OkStatus() : FileError(error, "cannot fsync folder", path);
}

StatusOr<std::string> ReadText(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  if (!in) return absl::DataLossError(StrCat(path, " is missing or unreadable"));
  std::string text((std::istreambuf_iterator<char>(in)), std::istreambuf_iterator<char>());
  if (in.bad()) return absl::DataLossError(StrCat("cannot read ", path));
  return text;
}

std::string StateToJson(const CheckpointState& s) {
  const json object = {{"format", kFormatVersion},
                       {"job_id", s.job_id},
                       {"plan_digest", s.plan_digest},
                       {"stage", s.stage},
                       {"step", s.step},
                       {"total_step", s.total_step},
                       {"stage_end", s.stage_end},
                       {"seed", s.seed},
                       {"world_size", s.world_size},
                       {"threads", s.threads},
                       {"generation", s.generation},
                       {"accuracy", s.score.accuracy},
                       {"mean_iou", s.score.mean_iou},
                       {"teacher_accuracy", s.teacher_score.accuracy},
                       {"teacher_mean_iou", s.teacher_score.mean_iou},
                       {"loss", s.loss}};
  return object.dump(2) + "\n";
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
    s.seed = object.at("seed").get<uint64_t>();
    s.world_size = object.at("world_size").get<uint32_t>();
    s.threads = object.at("threads").get<uint32_t>();
    s.generation = object.at("generation").get<uint64_t>();
    // A program of before the mean IoU may have begun the job.
    s.score = {object.at("accuracy").get<double>(), object.value("mean_iou", -1.0)};
    s.teacher_score = {object.at("teacher_accuracy").get<double>(), object.value("teacher_mean_iou", -1.0)};
    s.loss = object.at("loss").get<double>();
    return s;
  } catch (const json::exception& error) {
    return absl::DataLossError(StrCat(path, " does not parse: ", error.what()));
  }
}

struct FolderName {
  uint32_t stage = 0;
  uint64_t step = 0;
  std::string name;
};

std::string NameOf(uint32_t stage, uint64_t step) { return StrCat("stage-", stage, "-step-", step); }

bool ParseName(const std::string& name, FolderName* out) {
  char rest = 0;
  if (std::sscanf(name.c_str(), "stage-%" SCNu32 "-step-%" SCNu64 "%c", &out->stage, &out->step, &rest) != 2)
    return false;
  out->name = name;
  return NameOf(out->stage, out->step) == name;
}

// Newest first.
StatusOr<std::vector<FolderName>> ListFolders(const std::string& root) {
  std::vector<FolderName> folders;
  std::error_code error;
  for (fs::directory_iterator it(root, error), end; !error && it != end; it.increment(error)) {
    FolderName folder;
    if (ParseName(it->path().filename().string(), &folder)) folders.push_back(folder);
  }
  if (error) return FileError(error.value(), "cannot list", root);
  std::sort(folders.begin(), folders.end(), [](const FolderName& a, const FolderName& b) {
    return std::tie(a.stage, a.step) > std::tie(b.stage, b.step);
  });
  return folders;
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
    if (error) return FileError(error.value(), "cannot read the size of", path);
    files[name] = {{"bytes", bytes}, {"sha256", digest}};
  }
  const json manifest = {{"format", kFormatVersion}, {"files", files}};
  return WriteFileAtomically(StrCat(folder, "/", kManifestFile), manifest.dump(2) + "\n");
}

}  // namespace

StatusOr<CheckpointStore> CheckpointStore::Open(const std::string& root) {
  std::error_code error;
  fs::create_directories(root, error);
  if (error) return FileError(error.value(), "cannot make the folder", root);
  if (!fs::is_directory(root, error))
    return absl::InvalidArgumentError(StrCat(root, " is not a folder; choose another --work-dir"));
  return CheckpointStore(root);
}

StatusOr<StoredCheckpoint> CheckpointStore::Write(const Checkpoint& checkpoint) {
  const CheckpointState& state = checkpoint.state;
  const std::string temporary = StrCat(root_, "/.tmp-", state.generation);
  const std::string final_path = StrCat(root_, "/", NameOf(state.stage, state.step));
  std::error_code error;
  fs::remove_all(temporary, error);
  if (mkdir(temporary.c_str(), 0777) != 0) return FileError(errno, "cannot make the folder", temporary);

  Status status = WriteFiles(temporary, checkpoint);
  if (status.ok()) status = SyncFolder(temporary);
  if (status.ok()) {
    // rename() replaces only empty folders. A crash between the two calls costs this checkpoint, not its predecessor;
    // an equal one can only be here when the same step was trained again.
    fs::remove_all(final_path, error);
    if (rename(temporary.c_str(), final_path.c_str()) != 0) status = FileError(errno, "cannot rename to", final_path);
  }
  if (!status.ok()) {
    fs::remove_all(temporary, error);
    return Annotate(status, StrCat("checkpoint of stage ", state.stage, " step ", state.step, " was not written"));
  }
  DISTILL_RETURN_IF_ERROR(SyncFolder(root_));

  StoredCheckpoint stored;
  stored.path = final_path;
  DISTILL_ASSIGN_OR_RETURN(stored.digest, Sha256File(StrCat(final_path, "/", kManifestFile)));
  Prune(state.generation);
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

void CheckpointStore::Prune(uint64_t generation) const {
  // Best effort: what cannot be removed now is removed after a later checkpoint.
  std::error_code error;
  if (const auto folders = ListFolders(root_); folders.ok()) {
    for (size_t i = kKeepNewest; i < folders->size(); ++i) {
      const std::string path = StrCat(root_, "/", (*folders)[i].name);
      if (!IsStageEnd(path)) fs::remove_all(path, error);
    }
  }
  for (fs::directory_iterator it(root_, error), end; !error && it != end; it.increment(error)) {
    uint64_t other = 0;
    char rest = 0;
    const std::string name = it->path().filename().string();
    if (std::sscanf(name.c_str(), ".tmp-%" SCNu64 "%c", &other, &rest) == 1 && other < generation) {
      std::error_code ignored;
      fs::remove_all(it->path(), ignored);
    }
  }
}

}  // namespace distill
