#include "coordinator/jobfile/model_taps.h"

#include "common/zoo/archive_ref.h"

namespace distill {

const ServedTap* ModelTaps::Find(std::string_view path) const {
  for (const ServedTap& tap : taps) {
    if (tap.path == path) return &tap;
  }
  return nullptr;
}

std::vector<std::string> ModelTaps::Paths() const {
  std::vector<std::string> paths;
  for (const ServedTap& tap : taps) paths.push_back(tap.path);
  return paths;
}

std::vector<ServedTap> ModelTaps::StageEnds() const {
  std::vector<ServedTap> ends;
  for (const ServedTap& tap : taps) {
    if (tap.stage_end && tap.shape.size() == 3) ends.push_back(tap);
  }
  return ends;
}

ModelTaps TapsOf(const Architecture& architecture) {
  ModelTaps out;
  for (const TapInfo& tap : architecture.taps()) {
    out.taps.push_back({tap.path, std::string(Name(tap.kind)), tap.shape, tap.stage_end});
  }
  out.output = architecture.FindTap("")->shape;
  return out;
}

StatusOr<ModelTaps> TapsOf(const ServedModelInfo& model) {
  if (!model.taps.empty()) {
    ModelTaps out{model.taps, {}};
    if (const ServedTap* output = out.Find("")) out.output = output->shape;
    return out;
  }
  DISTILL_ASSIGN_OR_RETURN(Architecture architecture, Architecture::Create(model.spec));
  return TapsOf(architecture);
}

StatusOr<Architecture> ArchitectureOf(const ServedModelInfo& archive) {
  std::vector<TapInfo> taps;
  for (const ServedTap& tap : archive.taps) {
    taps.push_back({.path = tap.path,
                    .kind = ModuleKind::kOpaque,
                    .shape = tap.shape,
                    .stage_end = tap.stage_end,
                    .needs = tap.needs,
                    .is_cut = tap.is_cut});
  }
  std::vector<StateEntry> state;
  for (const ServedState& entry : archive.state) {
    state.push_back({entry.name, entry.shape, entry.is_buffer, entry.is_integer});
  }
  ModelSpec spec = archive.spec;
  spec.arch = ArchOf({archive.name, archive.digest});
  return Architecture::OfArchive(std::move(spec), std::move(taps), std::move(state));
}

}  // namespace distill
