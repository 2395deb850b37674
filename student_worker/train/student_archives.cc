#include "student_worker/train/student_archives.h"

#include <optional>
#include <string_view>
#include <utility>

#include "absl/strings/str_join.h"
#include "common/failure_kind.h"
#include "common/hash/sha256.h"
#include "common/safetensors/safetensors.h"
#include "common/str_cat.h"
#include "common/torch_status.h"
#include "common/zoo/archive_ref.h"
#include "common/zoo/model_file.h"
#include "common/zoo/model_metadata.h"
#include "common/zoo/torchscript_net.h"
#include "common/zoo/zoo_net.h"

namespace distill {
namespace {

struct Loaded {
  std::unique_ptr<TorchScriptNet> net;
  std::string digest;
  uint64_t bytes = 0;
};

StatusOr<Loaded> Load(const std::string& path, const std::string& name, const std::string& wanted_digest) {
  DISTILL_ASSIGN_OR_RETURN(const std::optional<ModelSidecar> sidecar, ReadSidecar(path));
  if (!sidecar) {
    return absl::InvalidArgumentError(StrCat(path, ": an archive does not say which images it takes; write ", path,
                                             ".yaml with in_channels, image, mean, std and stages, or export it with "
                                             "scripts/export_model.py, which writes both"));
  }
  ModelSpec spec = sidecar->spec;
  DISTILL_RETURN_IF_ERROR(CheckImageSpec(spec, path));
  DISTILL_ASSIGN_OR_RETURN(const Buffer content, ReadRegularFile(path));
  const std::string_view bytes(reinterpret_cast<const char*>(content.data), content.size);
  Sha256 hash;
  hash.Update(CanonicalText(spec));
  hash.Update(StrCat("stages=", absl::StrJoin(sidecar->stages, ","), "\n"));
  hash.Update(bytes);
  Loaded loaded;
  loaded.digest = hash.HexDigest();
  loaded.bytes = content.size;
  if (!wanted_digest.empty() && loaded.digest != wanted_digest) {
    return absl::FailedPreconditionError(
        StrCat(path, " or the .yaml file beside it changed since the job was submitted: its digest is ",
               loaded.digest.substr(0, 12), ", the job's ", wanted_digest.substr(0, 12),
               "; put the file back, or start the worker again and submit anew"));
  }
  spec.arch = ArchOf({name, loaded.digest});
  DISTILL_ASSIGN_OR_RETURN(
      loaded.net, TorchScriptNet::Load(path, spec, {.device = "cpu", .training = true, .stages = sidecar->stages}));
  DISTILL_RETURN_IF_ERROR(CheckArchiveIsDescribed(*sidecar, path, bytes, loaded.net->taps()));
  return loaded;
}

ServedModelInfo Describe(const std::string& name, const Loaded& loaded) {
  const Architecture& architecture = loaded.net->architecture();
  ServedModelInfo info;
  info.name = name;
  info.digest = loaded.digest;
  info.spec = architecture.spec();
  info.parameters = architecture.ParameterCount();
  info.bytes = loaded.bytes;
  std::vector<TapInfo> taps = architecture.taps();
  taps.push_back(*architecture.FindTap(""));
  for (TapInfo& tap : taps) {
    info.taps.push_back({.path = std::move(tap.path),
                         .type = std::string(Name(tap.kind)),
                         .shape = std::move(tap.shape),
                         .stage_end = tap.stage_end,
                         .needs = std::move(tap.needs),
                         .is_cut = tap.is_cut});
  }
  for (StateEntry& entry : architecture.StateDict()) {
    info.state.push_back({std::move(entry.name), std::move(entry.shape), entry.is_buffer, entry.is_integer});
  }
  return info;
}

}  // namespace

StatusOr<StudentArchives> LoadStudentArchives(const std::string& folder) {
  DISTILL_ASSIGN_OR_RETURN(const ModelFiles files, CollectArchives(folder));
  StudentArchives archives;
  archives.left_out = files.left_out;
  for (const ModelFile& file : files.files) {
    StatusOr<Loaded> loaded = absl::UnknownError("not loaded");
    try {
      loaded = Load(file.path, file.name, "");
    } catch (const std::exception& error) {
      loaded = TorchStatus(error, file.path);
    }
    if (!loaded.ok()) {
      archives.left_out.emplace_back(ToStd(loaded.status().message()));
      continue;
    }
    archives.paths.emplace(file.name, file.path);
    archives.descriptions.push_back(Describe(file.name, *loaded));
  }
  return archives;
}

StatusOr<std::shared_ptr<StudentNet>> MakeStudentNet(const JobPlan& plan, const StudentArchives* archives) {
  const ModelSpec& spec = plan.student;
  const std::optional<ArchiveRef> wanted = ParseArchiveRef(spec.arch);
  if (!wanted) {
    DISTILL_ASSIGN_OR_RETURN(std::shared_ptr<StudentNet> net, ZooNet::Create(spec));
    return net;
  }
  const std::string& name = wanted->name;
  if (archives == nullptr || !archives->paths.contains(name)) {
    return WithKind(
        absl::NotFoundError(StrCat("the job trains the archive '", name, "', which this student has not; put ", name,
                                   ".pt and ", name, ".pt.yaml into the folder of its --models and start it again")),
        FailureKind::kWorker);
  }
  StatusOr<Loaded> loaded = Load(archives->paths.at(name), name, wanted->digest);
  if (!loaded.ok()) return WithKind(loaded.status(), FailureKind::kWorker);
  return std::shared_ptr<StudentNet>(std::move(loaded->net));
}

}  // namespace distill
