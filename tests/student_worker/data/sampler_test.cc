#include "student_worker/data/sampler.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>

#include "student_worker/data/counter_rng.h"

namespace distill {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

uint64_t Fnv(const std::vector<uint32_t>& values) {
  uint64_t hash = 0xCBF29CE484222325ull;
  for (uint32_t value : values) {
    for (int i = 0; i < 4; ++i) hash = (hash ^ (value >> (8 * i) & 0xFF)) * 0x100000001B3ull;
  }
  return hash;
}

// The golden values of this file and of transforms_test.cc were computed by a separate program in Python from the
// definitions in the headers. A change of any of them breaks the repeatability of stored jobs.
TEST(CounterRngTest, MatchesGoldenValues) {
  CounterRng rng(42, RngPurpose::kEpochOrder, 7, 9);
  EXPECT_EQ(rng.Next(), 0xFB6D216868F6D371ull);
  EXPECT_EQ(rng.Next(), 0x0FD67325852C177Full);
  EXPECT_EQ(rng.Next(), 0x6C6767A0308F9173ull);
  CounterRng small(0, RngPurpose::kTransform);
  std::vector<uint64_t> draws;
  for (int i = 0; i < 10; ++i) draws.push_back(small.Below(10));
  EXPECT_THAT(draws, ElementsAre(5, 0, 8, 6, 2, 2, 3, 1, 3, 4));
  // A bound over 2^63 rejects about half of the draws: the loop that does so is part of the definition.
  CounterRng large(5, RngPurpose::kTransform);
  for (uint64_t expected :
       {0x437AE0DDA3B66C17ull, 0x3A5B7DD7BB77F831ull, 0x3275AE41C71A4C50ull, 0x67360743C722DD12ull}) {
    EXPECT_EQ(large.Below((1ull << 63) + 1), expected);
  }
}

TEST(CounterRngTest, StreamsOfDifferentKeysDiffer) {
  const uint64_t base = CounterRng(1, RngPurpose::kTransform, 2, 3).Next();
  EXPECT_NE(base, CounterRng(2, RngPurpose::kTransform, 2, 3).Next());
  EXPECT_NE(base, CounterRng(1, RngPurpose::kSubset, 2, 3).Next());
  EXPECT_NE(base, CounterRng(1, RngPurpose::kTransform, 3, 3).Next());
  EXPECT_NE(base, CounterRng(1, RngPurpose::kTransform, 2, 4).Next());
  EXPECT_NE(base, CounterRng(1, RngPurpose::kTransform, 3, 2).Next());
}

TEST(SamplerTest, PartsOfABatchAreItsImagesInOrderAlsoOverRanksAndEpochs) {
  const SamplerOptions whole{.dataset_size = 22, .seed = 3, .batch_size = 8, .world_size = 1, .rank = 0};
  auto expected = Sampler::Create(whole);
  ASSERT_TRUE(expected.ok());
  for (uint32_t ranks : {1u, 2u}) {
    std::vector<Sampler> samplers;
    for (uint32_t rank = 0; rank < ranks; ++rank) {
      SamplerOptions options = whole;
      options.world_size = ranks;
      options.rank = rank;
      options.parts = 4;
      auto sampler = Sampler::Create(options);
      ASSERT_TRUE(sampler.ok()) << sampler.status();
      EXPECT_EQ(sampler->batch_per_rank(), 2 / ranks);
      samplers.push_back(*std::move(sampler));
    }
    for (uint64_t step = 0; step < 5; ++step) {  // 2 steps to an epoch, whose last 6 images are dropped
      std::vector<uint32_t> ids;
      for (uint64_t part = 0; part < 4; ++part) {
        for (Sampler& sampler : samplers) {
          EXPECT_EQ(sampler.Epoch(4 * step + part), step / 2);
          for (uint32_t id : sampler.SampleIds(4 * step + part)) ids.push_back(id);
        }
      }
      EXPECT_EQ(ids, expected->SampleIds(step)) << "step " << step << ", " << ranks << " ranks";
    }
  }
  SamplerOptions uneven = whole;
  uneven.parts = 3;
  EXPECT_THAT(Sampler::Create(uneven).status().ToString(), HasSubstr("times the parts of a batch"));
}

TEST(SamplerTest, OrderMatchesGoldenValues) {
  EXPECT_THAT(EpochOrder(7, 0, 12), ElementsAre(9, 0, 10, 1, 4, 6, 5, 3, 2, 11, 7, 8));
  EXPECT_THAT(EpochOrder(7, 1, 12), ElementsAre(1, 10, 8, 6, 7, 11, 5, 0, 2, 4, 3, 9));
  EXPECT_THAT(SubsetOrder(7, 12, 5), ElementsAre(3, 10, 8, 0, 4));
  const std::vector<uint32_t> large = EpochOrder(123456789, 3, 60000);
  EXPECT_THAT(std::vector<uint32_t>(large.begin(), large.begin() + 4), ElementsAre(54090, 22715, 28171, 38329));
  EXPECT_EQ(Fnv(large), 0xD10BD40B087FD941ull);
}

TEST(SamplerTest, OrderIsAPermutation) {
  for (uint32_t size : {1u, 2u, 33u, 1009u}) {
    std::vector<uint32_t> order = EpochOrder(3, 5, size);
    std::sort(order.begin(), order.end());
    for (uint32_t i = 0; i < size; ++i) ASSERT_EQ(order[i], i) << "size " << size;
  }
}

TEST(SamplerTest, RanksPartitionTheGlobalBatchForAnyWorldSize) {
  SamplerOptions options{.dataset_size = 103, .seed = 9, .batch_size = 12};
  auto alone = Sampler::Create(options);
  ASSERT_TRUE(alone.ok()) << alone.status();
  EXPECT_EQ(alone->steps_per_epoch(), 8);
  for (uint32_t world : {2u, 3u, 4u, 12u}) {
    for (uint64_t step : {0, 7, 8, 100}) {
      std::vector<uint32_t> joined;
      for (uint32_t rank = 0; rank < world; ++rank) {
        options.world_size = world;
        options.rank = rank;
        auto sampler = Sampler::Create(options);
        ASSERT_TRUE(sampler.ok()) << sampler.status();
        for (uint32_t id : sampler->SampleIds(step)) joined.push_back(id);
      }
      EXPECT_EQ(joined, alone->SampleIds(step)) << "world " << world << " step " << step;
    }
  }
}

TEST(SamplerTest, AnEpochShowsEachImageAtMostOnceAndDropsTheIncompleteBatch) {
  auto sampler = Sampler::Create({.dataset_size = 103, .seed = 9, .batch_size = 10});
  ASSERT_TRUE(sampler.ok()) << sampler.status();
  std::vector<uint32_t> seen;
  for (uint64_t step = 20; step < 30; ++step) {
    EXPECT_EQ(sampler->Epoch(step), 2);
    for (uint32_t id : sampler->SampleIds(step)) seen.push_back(id);
  }
  EXPECT_EQ(sampler->Epoch(30), 3);
  const std::vector<uint32_t> order = EpochOrder(9, 2, 103);
  EXPECT_EQ(seen, std::vector<uint32_t>(order.begin(), order.begin() + 100));
}

TEST(SamplerTest, StepsMayBeAskedInAnyOrder) {
  auto forward = Sampler::Create({.dataset_size = 50, .seed = 1, .batch_size = 7});
  auto backward = Sampler::Create({.dataset_size = 50, .seed = 1, .batch_size = 7});
  ASSERT_TRUE(forward.ok() && backward.ok());
  std::vector<std::vector<uint32_t>> steps;
  for (uint64_t step = 0; step < 30; ++step) steps.push_back(forward->SampleIds(step));
  for (uint64_t step = 30; step-- > 0;) EXPECT_EQ(backward->SampleIds(step), steps[step]) << "step " << step;
}

TEST(SamplerTest, RefusesImpossibleOptions) {
  auto message = [](const SamplerOptions& options) {
    auto sampler = Sampler::Create(options);
    EXPECT_EQ(sampler.status().code(), StatusCode::kInvalidArgument);
    return std::string(sampler.status().message());
  };
  EXPECT_THAT(message({.dataset_size = 10, .batch_size = 11}), HasSubstr("larger than the 10 training images"));
  EXPECT_THAT(message({.dataset_size = 10, .batch_size = 0}), HasSubstr("batch size 0"));
  EXPECT_THAT(message({.dataset_size = 10, .batch_size = 5, .world_size = 2}), HasSubstr("multiple of the 2 ranks"));
  EXPECT_THAT(message({.dataset_size = 10, .batch_size = 4, .world_size = 2, .rank = 2}), HasSubstr("rank 2"));
  EXPECT_THAT(message({.dataset_size = 1ull << 33, .batch_size = 4}), HasSubstr("at most"));
}

}  // namespace
}  // namespace distill
