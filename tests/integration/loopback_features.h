// A teacher's features as a student gets them: through the real service, gRPC on loopback, and the real pool.
#ifndef DISTILL_TESTS_INTEGRATION_LOOPBACK_FEATURES_H_
#define DISTILL_TESTS_INTEGRATION_LOOPBACK_FEATURES_H_

#include <vector>

#include "common/status.h"
#include "common/wire/feature_batch.h"
#include "teacher_server/teacher_engine.h"

namespace distill::testing {

// The answer of the engine's first model, of the shapes that it says. The engine outlives the call.
StatusOr<FeatureBatch> FetchOverLoopback(TeacherEngine* engine, const std::vector<TapRequest>& taps,
                                         const ImageBatch& images);

}  // namespace distill::testing

#endif  // DISTILL_TESTS_INTEGRATION_LOOPBACK_FEATURES_H_
