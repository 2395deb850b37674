// Readers of data sets for tests.
#ifndef DISTILL_TESTS_STUDENT_WORKER_DATA_SAMPLE_READERS_H_
#define DISTILL_TESTS_STUDENT_WORKER_DATA_SAMPLE_READERS_H_

#include <gtest/gtest.h>

#include <memory>
#include <utility>
#include <vector>

#include "student_worker/data/sample_reader.h"

namespace distill::testing {

inline std::shared_ptr<const SampleReader> ReaderOf(std::shared_ptr<const Dataset> dataset,
                                                    const std::vector<TransformPlan>& transforms = {},
                                                    uint64_t seed = 0) {
  auto made = Transforms::Create(transforms, seed);
  EXPECT_TRUE(made.ok()) << made.status();
  auto reader = SampleReader::Create({.dataset = std::move(dataset), .transforms = *std::move(made)});
  EXPECT_TRUE(reader.ok()) << reader.status();
  return *std::move(reader);
}

}  // namespace distill::testing

#endif  // DISTILL_TESTS_STUDENT_WORKER_DATA_SAMPLE_READERS_H_
