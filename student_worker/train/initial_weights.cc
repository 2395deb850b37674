#include "student_worker/train/initial_weights.h"

#include <algorithm>

#include "common/failure_kind.h"
#include "common/hash/sha256.h"
#include "common/safetensors/safetensors.h"
#include "common/str_cat.h"
#include "common/zoo/model_metadata.h"
#include "common/zoo/weights.h"
#include "common/zoo/weights_file.h"
#include "student_worker/data/dataset.h"

namespace distill {
namespace {

// That `path` is the file which the job's teachers serve.
Status CheckIsTeachersFile(const JobPlan& plan, const std::string& path) {
  if (plan.teachers.empty()) return absl::InvalidArgumentError("the student starts as its teacher, but there is none");
  const TeacherRef& teacher = plan.teachers[0];
  DISTILL_ASSIGN_OR_RETURN(const Buffer bytes, ReadRegularFile(path));
  const std::string digest = Sha256Hex(
      StrCat(CanonicalText(teacher.spec), std::string_view(reinterpret_cast<const char*>(bytes.data), bytes.size)));
  if (digest == teacher.digest) return OkStatus();
  return WithKind(absl::FailedPreconditionError(StrCat(
                      "'", path, "' is not the file of the teacher '", teacher.model, "': with it the digest is ",
                      digest.substr(0, 12), ", the teacher's is ", teacher.digest.substr(0, 12),
                      "; put a copy of the file there that distill-teacher serves, or use "
                      "sskd.head.init: random")),
                  FailureKind::kWorker);
}

}  // namespace

Status LoadInitialWeights(const JobPlan& plan, const std::string& model_root, StudentNet* net) {
  net->InitWeights(plan.seed);
  if (plan.student.weights.empty()) return OkStatus();
  if (model_root.empty()) {
    return WithKind(absl::InvalidArgumentError(StrCat("the job starts from weights '", plan.student.weights,
                                                      "', but this student was started without --model-root")),
                    FailureKind::kWorker);
  }
  DISTILL_ASSIGN_OR_RETURN(const std::string path, ResolveBelow(model_root, plan.student.weights));
  if (plan.student.weights_of_teacher) DISTILL_RETURN_IF_ERROR(CheckIsTeachersFile(plan, path));
  StatusOr<SafetensorsFile> file = ReadWeightsFile(path, net->architecture());
  if (!file.ok()) return WithKind(file.status(), FailureKind::kWorker);
  if (plan.student.weights_modules.empty()) return Annotate(LoadWeights(*file, net), path);
  SafetensorsFile mixed = SaveWeights(*net);
  for (auto& [name, tensor] : mixed.tensors) {
    const bool wanted = std::any_of(plan.student.weights_modules.begin(), plan.student.weights_modules.end(),
                                    [&name = name](const std::string& module) { return IsUnder(name, module); });
    if (!wanted) continue;
    const auto found = file->tensors.find(name);
    if (found == file->tensors.end()) {
      return absl::FailedPreconditionError(
          StrCat(path, " has no '", name, "', which student.weights_modules asks for"));
    }
    tensor = found->second;
  }
  return Annotate(LoadWeights(mixed, net), path);
}

}  // namespace distill
