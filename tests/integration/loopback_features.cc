#include "tests/integration/loopback_features.h"

#include <future>

#include "common/metrics/metrics.h"
#include "common/rpc/server.h"
#include "student_worker/feature/teacher_pool.h"
#include "teacher_server/feature_service.h"
#include "teacher_server/stream_set.h"

namespace distill::testing {

StatusOr<FeatureBatch> FetchOverLoopback(TeacherEngine* engine, const std::vector<TapRequest>& taps,
                                         const ImageBatch& images) {
  MetricsRegistry metrics;
  StreamSet streams({}, &metrics);
  streams.SetEngine(engine);
  const auto service = CreateFeatureService(&streams);
  DISTILL_ASSIGN_OR_RETURN(const auto server, RpcServer::Start({}, {service.get()}));
  const ServedModelInfo& served = engine->models()[0].served;
  TeacherPool::Options options;
  options.model = served.name;
  options.digest = served.digest;
  options.taps = taps;
  options.client = "test";
  std::promise<StatusOr<FeatureBatch>> promise;
  std::future<StatusOr<FeatureBatch>> answer = promise.get_future();
  {
    DISTILL_ASSIGN_OR_RETURN(const auto pool, TeacherPool::Create(std::move(options)));
    pool->SetTeachers({{"teacher", server->address(), served.name, served.digest}});
    pool->Fetch(0, images, [&](StatusOr<FeatureBatch> features) { promise.set_value(std::move(features)); });
    answer.wait();
  }
  server->Stop(std::chrono::milliseconds(0));
  return answer.get();
}

}  // namespace distill::testing
