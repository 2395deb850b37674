#include "student_worker/train/artifacts.h"

#include <filesystem>
#include <nlohmann/json.hpp>
#include <system_error>

#include "common/hash/sha256.h"
#include "common/safetensors/safetensors.h"
#include "common/str_cat.h"

namespace distill {
namespace {

using nlohmann::json;

StatusOr<uint64_t> FileBytes(const std::string& path) {
  std::error_code error;
  const uint64_t bytes = std::filesystem::file_size(path, error);
  if (error) return absl::NotFoundError(StrCat("cannot read the size of ", path, ": ", error.message()));
  return bytes;
}

Status Describe(const std::string& path, uint64_t bytes, json* description) {
  DISTILL_ASSIGN_OR_RETURN(const std::string digest, Sha256File(path));
  *description = {{"file", std::filesystem::path(path).filename().string()}, {"bytes", bytes}, {"sha256", digest}};
  return OkStatus();
}

// {"top1": 0.88, ...}, null where nothing was measured.
json Metrics(const Score& score) {
  json metrics = nullptr;
  for (const NamedNumber& metric : score.metrics) metrics[metric.name] = metric.value;
  return metrics;
}

// Counts by class, null where there are none.
json ByClass(const ClassResults& results) {
  if (results.classes() == 0) return nullptr;
  json classes = {{"labelled", results.labelled}, {"answered", results.answered}, {"right", results.right}};
  if (results.confusion.empty()) return classes;
  json rows = json::array();  // by label; in a row by answer
  for (size_t label = 0; label < results.classes(); ++label) {
    const auto row = results.confusion.begin() + static_cast<std::ptrdiff_t>(label * results.classes());
    rows.push_back(std::vector<uint64_t>(row, row + static_cast<std::ptrdiff_t>(results.classes())));
  }
  classes["confusion"] = rows;
  return classes;
}

}  // namespace

Status MeasureFiles(JobArtifacts* artifacts) {
  DISTILL_ASSIGN_OR_RETURN(artifacts->safetensors_bytes, FileBytes(artifacts->safetensors));
  DISTILL_ASSIGN_OR_RETURN(artifacts->torchscript_bytes, FileBytes(artifacts->torchscript));
  return OkStatus();
}

Status WriteResult(const std::string& path, const std::string& job_id, const JobPlan& plan,
                   const std::string& plan_digest, const JobArtifacts& artifacts, const StepCounts& steps) {
  json safetensors, torchscript;
  DISTILL_RETURN_IF_ERROR(Describe(artifacts.safetensors, artifacts.safetensors_bytes, &safetensors));
  DISTILL_RETURN_IF_ERROR(Describe(artifacts.torchscript, artifacts.torchscript_bytes, &torchscript));
  json result = {{"job_id", job_id},
                 {"name", plan.name},
                 {"plan_digest", plan_digest},
                 {"seed", plan.seed},
                 {"arch", plan.student.arch},
                 {"width", plan.student.width},
                 {"num_classes", plan.student.num_classes},
                 {"steps", steps.total},
                 {"skipped_steps", steps.skipped},
                 {"student_parameters", artifacts.student_parameters},
                 {"student_score", Metrics(artifacts.student_score)},
                 {"teacher_score", Metrics(artifacts.teacher_score)},
                 {"student_classes", ByClass(artifacts.student_score.by_class)},
                 {"teacher_classes", ByClass(artifacts.teacher_score.by_class)},
                 {"safetensors", safetensors},
                 {"torchscript", torchscript}};
  if (!plan.teachers.empty()) {
    result["teacher"] = {{"model", plan.teachers[0].model},
                         {"digest", plan.teachers[0].digest},
                         {"arch", plan.teachers[0].spec.arch},
                         {"parameters", artifacts.teacher_parameters}};
  }
  return WriteFileAtomically(path, result.dump(2) + "\n");
}

}  // namespace distill
