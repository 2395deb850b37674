// Ranks are threads of this program that share an in-process store; between them are real TCP connections over
// loopback.
#include "common/collective/collective_group.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/torch.h>
#include <unistd.h>

#include <atomic>
#include <fstream>
#include <functional>
#include <thread>

#include "common/str_cat.h"
#include "common/torch_status.h"
#include "common/zoo/zoo_net.h"

namespace distill {
namespace {

using ::testing::HasSubstr;

// So long that a test that depended on it would be stopped first.
constexpr std::chrono::minutes kNever{30};

CollectiveGroup::Options RankOptions(uint32_t rank, uint32_t world_size) {
  return {.rank = rank, .world_size = world_size, .timeout = kNever};
}

StatusOr<std::unique_ptr<CollectiveGroup>> Form(const CollectiveGroup::Options& options,
                                                std::shared_ptr<KvClient> store) {
  DISTILL_ASSIGN_OR_RETURN(std::unique_ptr<CollectiveGroup> group, CollectiveGroup::Create(options, std::move(store)));
  DISTILL_RETURN_IF_ERROR(group->Connect());
  return group;
}

// An operation in which each rank waits for all others.
Status Barrier(CollectiveGroup& group) {
  std::vector<torch::Tensor> tensors = {torch::ones({1})};
  return group.AllReduceSum(tensors);
}

// Runs `body` on one thread per rank and joins them.
void OnRanks(uint32_t world_size, const std::function<void(uint32_t rank)>& body) {
  std::vector<std::thread> threads;
  for (uint32_t rank = 0; rank < world_size; ++rank) {
    threads.emplace_back([&body, rank] {
      torch::set_num_threads(1);
      body(rank);
    });
  }
  for (std::thread& thread : threads) thread.join();
}

// The same, with a group of all ranks.
void InGroup(uint32_t world_size, const std::function<void(CollectiveGroup&)>& body) {
  const std::shared_ptr<KvClient> store = MakeLocalKvClient();
  OnRanks(world_size, [&](uint32_t rank) {
    auto group = Form(RankOptions(rank, world_size), store);
    ASSERT_TRUE(group.ok()) << "rank " << rank << ": " << group.status();
    body(**group);
    EXPECT_TRUE(Barrier(**group).ok() || ::testing::Test::HasFailure()) << "nobody leaves before the others are done";
  });
}

TEST(CollectiveGroupTest, AllReduceSumsTensorsOfEveryLayoutAndType) {
  InGroup(3, [](CollectiveGroup& group) {
    const float mine = static_cast<float>(group.rank() + 1);
    torch::Tensor column = torch::zeros({4, 2}).t();  // not contiguous
    column.fill_(mine);
    std::vector<torch::Tensor> tensors = {
        torch::full({1000}, mine), column, torch::full({}, static_cast<int64_t>(group.rank())), torch::empty({0}),
        torch::full({2, 3, 4, 5}, mine).contiguous(torch::MemoryFormat::ChannelsLast)};
    const torch::Tensor parameter = torch::full({3}, mine, torch::requires_grad());
    tensors.push_back(parameter);
    const Status status = group.AllReduceSum(tensors);
    ASSERT_TRUE(status.ok()) << status;
    for (size_t i : {0, 1, 4, 5})
      EXPECT_TRUE((tensors[i] == 6).all().item<bool>()) << "tensor " << i << " rank " << group.rank();
    EXPECT_TRUE((parameter == 6).all().item<bool>()) << "in place";
    EXPECT_EQ(tensors[2].item<int64_t>(), 3);
    EXPECT_EQ(column.stride(0), 1) << "the layout stays";
  });
}

// LibTorch keeps one record of collectives for all groups of a process, and wrote it without a lock.
TEST(CollectiveGroupTest, GroupsOfOneProcessDoNotDisturbEachOther) {
  constexpr uint32_t kGroups = 4, kRanks = 2;
  for (int round = 0; round < 20; ++round) {
    std::vector<std::shared_ptr<KvClient>> stores;
    for (uint32_t i = 0; i < kGroups; ++i) stores.push_back(MakeLocalKvClient());
    std::atomic<uint32_t> connected{0};
    OnRanks(kGroups * kRanks, [&](uint32_t i) {
      auto group = Form(RankOptions(i % kRanks, kRanks), stores[i / kRanks]);
      EXPECT_TRUE(group.ok()) << group.status();
      ++connected;
      while (connected < kGroups * kRanks) std::this_thread::yield();  // so that the first operations run at once
      if (!group.ok()) return;
      EXPECT_TRUE(Barrier(**group).ok());
    });
  }
}

TEST(CollectiveGroupTest, BroadcastComesFromTheRootAndBarrierWaitsForAll) {
  std::atomic<int> before{0};
  InGroup(3, [&](CollectiveGroup& group) {
    EXPECT_EQ(group.world_size(), 3u);
    std::vector<torch::Tensor> tensors = {torch::full({2, 2}, static_cast<float>(group.rank())),
                                          torch::full({1}, static_cast<int64_t>(group.rank()))};
    const Status status = group.Broadcast(tensors, 1);
    ASSERT_TRUE(status.ok()) << status;
    EXPECT_TRUE((tensors[0] == 1).all().item<bool>());
    EXPECT_EQ(tensors[1].item<int64_t>(), 1);
    EXPECT_EQ(group.Broadcast(tensors, 3).code(), StatusCode::kInvalidArgument);
    ++before;
    ASSERT_TRUE(Barrier(group).ok());
    EXPECT_EQ(before, 3);
  });
}

// A network whose gradients fill several buckets (1 MiB and 25 MiB), all the same on every rank.
std::shared_ptr<ZooNet> MakeNet() {
  auto net = ZooNet::Create(
      {.arch = "cifar_resnet8", .width = 64, .num_classes = 10, .in_channels = 1, .image_height = 8, .image_width = 8});
  (*net)->InitWeights(1);
  return *net;
}
struct Batch {
  torch::Tensor images, labels;
};
Batch MakeBatch(uint64_t step) {
  at::Generator generator = at::make_generator<at::CPUGeneratorImpl>(step);
  return {torch::empty({8, 1, 8, 8}).normal_(0, 1, generator),
          torch::empty({8}, torch::kInt64).random_(0, 10, generator)};
}
void Backward(ZooNet& net, const Batch& batch, GradientReducer* reducer) {
  if (reducer != nullptr) {
    ASSERT_TRUE(reducer->PrepareForForward().ok());
  }
  const torch::Tensor loss = torch::nn::functional::cross_entropy((*net.Forward(batch.images, {""}))[0], batch.labels);
  if (reducer != nullptr) {
    ASSERT_TRUE(reducer->PrepareForBackward({loss}).ok());
  }
  loss.backward();
}
torch::Tensor FlatGradient(const std::vector<torch::Tensor>& parameters) {
  std::vector<torch::Tensor> flat;
  for (const torch::Tensor& p : parameters) flat.push_back(p.grad().flatten());
  return torch::cat(flat);
}

// Batch norm in eval mode: in train mode each rank has statistics of its own share, by design.
TEST(GradientReducerTest, MeanOverRanksEqualsTheWholeBatch) {
  constexpr uint32_t kRanks = 2;
  InGroup(kRanks, [](CollectiveGroup& group) {
    const auto whole_net = MakeNet();
    const auto net = MakeNet();
    whole_net->eval();
    net->eval();
    auto reducer = group.MakeReducer(net->parameters());
    ASSERT_TRUE(reducer.ok()) << reducer.status();
    for (uint64_t step = 0; step < 4; ++step) {  // buckets are rebuilt after the first
      const Batch whole = MakeBatch(step);
      whole_net->zero_grad();
      net->zero_grad();
      Backward(*whole_net, whole, nullptr);
      const int64_t share = 8 / kRanks, begin = group.rank() * share;
      Backward(*net, {whole.images.slice(0, begin, begin + share), whole.labels.slice(0, begin, begin + share)},
               reducer->get());
      const torch::Tensor expected = FlatGradient(whole_net->parameters()), got = FlatGradient(net->parameters());
      const double worst = (got - expected).abs().max().item<double>();
      EXPECT_LE(worst, 1e-6) << "step " << step << " rank " << group.rank();
      EXPECT_GT(expected.abs().max().item<double>(), 1e-3);
    }
  });
}

TEST(GradientReducerTest, OnlyTheGivenParametersTakePartAndAllRanksAgreeToTheBit) {
  std::vector<torch::Tensor> gradients(3);
  InGroup(3, [&](CollectiveGroup& group) {
    const auto net = MakeNet();
    net->train();
    std::vector<torch::Tensor> trainable;
    for (auto& item : net->named_parameters()) {
      if (IsUnder(item.key(), "layer3") || IsUnder(item.key(), "fc")) {
        trainable.push_back(item.value());
      } else {
        item.value().requires_grad_(false);
      }
    }
    auto reducer = group.MakeReducer(trainable);
    ASSERT_TRUE(reducer.ok()) << reducer.status();
    for (uint64_t step = 0; step < 3; ++step) {
      net->zero_grad();
      Backward(*net, MakeBatch(100 * group.rank() + step), reducer->get());
    }
    gradients[group.rank()] = FlatGradient(trainable).clone();
    EXPECT_FALSE(net->named_parameters()["conv1.weight"].grad().defined());
  });
  EXPECT_TRUE(torch::equal(gradients[0], gradients[1]));
  EXPECT_TRUE(torch::equal(gradients[0], gradients[2]));
}

TEST(GradientReducerTest, OneReducerPerStageOverTheSameGroup) {
  InGroup(2, [](CollectiveGroup& group) {
    const auto net = MakeNet();
    net->eval();
    for (const char* stage : {"layer3", "fc"}) {
      std::vector<torch::Tensor> trainable;
      for (auto& item : net->named_parameters()) {
        item.value().requires_grad_(IsUnder(item.key(), stage));
        if (item.value().requires_grad()) trainable.push_back(item.value());
      }
      net->zero_grad();
      auto reducer = group.MakeReducer(trainable);
      ASSERT_TRUE(reducer.ok()) << reducer.status();
      Backward(*net, MakeBatch(group.rank()), reducer->get());
      const torch::Tensor mean = FlatGradient(trainable);
      // The mean of what each rank has alone.
      net->zero_grad();
      torch::Tensor expected;
      for (uint64_t rank : {0, 1}) {
        const auto alone = MakeNet();
        alone->eval();
        Backward(*alone, MakeBatch(rank), nullptr);
        std::vector<torch::Tensor> same;
        for (auto& item : alone->named_parameters()) {
          if (IsUnder(item.key(), stage)) same.push_back(item.value());
        }
        expected = rank == 0 ? FlatGradient(same) : (expected + FlatGradient(same)) / 2;
      }
      EXPECT_LE((mean - expected).abs().max().item<double>(), 1e-6) << stage;
    }
  });
}

TEST(CollectiveGroupTest, LostRankAbortsTheOthersAndTheyReformUnderTheNextStore) {
  const std::shared_ptr<KvClient> generation_1 = MakeLocalKvClient(), generation_2 = MakeLocalKvClient();
  OnRanks(3, [&](uint32_t rank) {
    auto group = Form(RankOptions(rank, 3), generation_1);
    ASSERT_TRUE(group.ok()) << group.status();
    std::vector<torch::Tensor> tensors = {torch::ones({1 << 18})};
    ASSERT_TRUE((*group)->AllReduceSum(tensors).ok());
    if (rank != 2) {
      const Status status = (*group)->AllReduceSum(tensors);
      EXPECT_EQ(status.code(), StatusCode::kAborted) << "rank " << rank << ": " << status;
      EXPECT_EQ(Barrier(**group).code(), StatusCode::kAborted) << "the group is useless afterwards";
    }
    group->reset();  // rank 2 leaves without a word: its sockets close, as those of a dead process do

    group = Form(RankOptions(rank, 3), generation_2);
    ASSERT_TRUE(group.ok()) << group.status();
    tensors = {torch::ones({4})};
    const Status status = (*group)->AllReduceSum(tensors);
    ASSERT_TRUE(status.ok()) << status;
    EXPECT_EQ(tensors[0][0].item<float>(), 3);
    ASSERT_TRUE(Barrier(**group).ok());
  });
}

TEST(CollectiveGroupTest, RankLostDuringBackwardSurfacesAsAborted) {
  const std::shared_ptr<KvClient> store = MakeLocalKvClient();
  OnRanks(2, [&](uint32_t rank) {
    auto group = Form(RankOptions(rank, 2), store);
    ASSERT_TRUE(group.ok()) << group.status();
    const auto net = MakeNet();
    net->eval();
    auto reducer = (*group)->MakeReducer(net->parameters());
    ASSERT_TRUE(reducer.ok()) << reducer.status();
    Backward(*net, MakeBatch(0), reducer->get());
    if (rank == 1) {
      reducer->reset();
      group->reset();
      return;
    }
    Status status;
    for (uint64_t step = 1; status.ok() && step < 3; ++step) {  // the second step also agrees on the order of buckets
      status = (*reducer)->PrepareForForward();
      if (!status.ok()) break;
      const torch::Tensor loss = (*net->Forward(MakeBatch(step).images, {""}))[0].sum();
      ASSERT_TRUE((*reducer)->PrepareForBackward({loss}).ok());
      try {
        loss.backward();
      } catch (const std::exception& error) {
        status = TorchStatus(error, "backward");
      }
    }
    EXPECT_EQ(status.code(), StatusCode::kAborted) << status;
  });
}

// Waits until a thread of this process sleeps: it has entered a blocking call.
void AwaitSleep(pid_t thread) {
  for (;;) {
    std::ifstream file(StrCat("/proc/self/task/", thread, "/stat"));
    const std::string text{std::istreambuf_iterator<char>(file), {}};
    if (text.find(") S ") != std::string::npos) return;
    std::this_thread::yield();
  }
}

TEST(CollectiveGroupTest, AbortWakesTheOwnWaiterAndThePeers) {
  const std::shared_ptr<KvClient> store = MakeLocalKvClient();
  std::atomic<CollectiveGroup*> waiting{nullptr};
  std::atomic<pid_t> waiting_thread{0};
  std::atomic<bool> aborted{false};
  std::thread heartbeat([&] {
    while (waiting == nullptr) std::this_thread::yield();
    AwaitSleep(waiting_thread);
    waiting.load()->Abort();
    waiting.load()->Abort();  // idempotent
    aborted = true;
  });
  OnRanks(2, [&](uint32_t rank) {
    auto group = Form(RankOptions(rank, 2), store);
    ASSERT_TRUE(group.ok()) << group.status();
    std::vector<torch::Tensor> tensors = {torch::ones({4})};
    if (rank == 0) {
      waiting_thread = ::gettid();
      waiting = group->get();
    } else {
      while (!aborted) std::this_thread::yield();  // a rank that hangs: rank 0 waits for it in vain
    }
    const Status status = (*group)->AllReduceSum(tensors);
    EXPECT_EQ(status.code(), StatusCode::kAborted) << "rank " << rank << ": " << status;
    while (!aborted) std::this_thread::yield();  // the group lives until Abort() has returned
  });
  heartbeat.join();
}

TEST(CollectiveGroupTest, MissingRankIsNamedAfterTheTimeout) {
  CollectiveGroup::Options options = RankOptions(1, 3);
  options.timeout = std::chrono::milliseconds(50);
  const Status status = Form(options, MakeLocalKvClient()).status();
  EXPECT_EQ(status.code(), StatusCode::kDeadlineExceeded);
  EXPECT_THAT(std::string(status.message()), HasSubstr("missing: 0, 2"));
}

TEST(CollectiveGroupTest, RankThatDiesBetweenArrivingAndConnectingIsAborted) {
  const std::shared_ptr<KvClient> store = MakeLocalKvClient();
  ASSERT_TRUE(store->Set("connecting/1", "127.0.0.1").ok());  // and then nothing more
  CollectiveGroup::Options options = RankOptions(0, 2);
  options.timeout = std::chrono::milliseconds(200);
  const Status status = Form(options, store).status();
  EXPECT_TRUE(status.code() == StatusCode::kAborted || status.code() == StatusCode::kDeadlineExceeded) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr("rank 0 of 2"));
}

// A store whose generation ends while ranks wait in it.
class EndedStore : public KvClient {
 public:
  Status Set(const std::string&, const std::string&) override { return OkStatus(); }
  StatusOr<std::string> Get(const std::string&, std::chrono::milliseconds) override { return Over(); }
  StatusOr<int64_t> Add(const std::string&, int64_t) override { return Over(); }
  StatusOr<std::string> CompareSet(const std::string&, const std::string&, const std::string&) override {
    return Over();
  }
  StatusOr<bool> Check(const std::vector<std::string>&) override { return Over(); }
  Status Wait(const std::vector<std::string>& keys, std::chrono::milliseconds) override {
    return keys.size() > 1 ? OkStatus() : Over();  // all have arrived; it ends while they connect
  }
  StatusOr<bool> Delete(const std::string&) override { return Over(); }
  StatusOr<int64_t> Count() override { return Over(); }

 private:
  static Status Over() { return absl::AbortedError("generation 3 is over"); }
};

TEST(CollectiveGroupTest, EndedGenerationIsAbortedWithTheStoresReason) {
  const Status status = Form(RankOptions(0, 2), std::make_shared<EndedStore>()).status();
  EXPECT_EQ(status.code(), StatusCode::kAborted);
  EXPECT_THAT(std::string(status.message()), HasSubstr("generation 3 is over"));
}

TEST(CollectiveGroupTest, OneRankNeedsNoStoreAndNoNetwork) {
  auto group = Form({}, nullptr);
  ASSERT_TRUE(group.ok()) << group.status();
  std::vector<torch::Tensor> tensors = {torch::full({2}, 5.0f)};
  EXPECT_TRUE((*group)->AllReduceSum(tensors).ok());
  EXPECT_EQ(tensors[0][0].item<float>(), 5);
  EXPECT_TRUE((*group)->Broadcast(tensors, 0).ok());
  EXPECT_TRUE(Barrier(**group).ok());
  const auto net = MakeNet();
  auto reducer = (*group)->MakeReducer(net->parameters());
  ASSERT_TRUE(reducer.ok());
  Backward(*net, MakeBatch(0), reducer->get());
  EXPECT_GT(FlatGradient(net->parameters()).abs().max().item<float>(), 0);
  (*group)->Abort();
  EXPECT_EQ(Barrier(**group).code(), StatusCode::kAborted);
}

TEST(CollectiveGroupTest, ImpossibleOptionsAreRefused) {
  const auto code = [](CollectiveGroup::Options options) { return Form(options, MakeLocalKvClient()).status().code(); };
  EXPECT_EQ(code(RankOptions(2, 2)), StatusCode::kInvalidArgument);
  EXPECT_EQ(code(RankOptions(0, 0)), StatusCode::kInvalidArgument);
  EXPECT_EQ(code({.device = "tpu"}), StatusCode::kInvalidArgument);
  EXPECT_EQ(code({.timeout = std::chrono::milliseconds(0)}), StatusCode::kInvalidArgument);
  EXPECT_EQ(Form(RankOptions(0, 2), nullptr).status().code(), StatusCode::kInvalidArgument);

  const std::shared_ptr<KvClient> store = MakeLocalKvClient();
  ASSERT_TRUE(store->Set("connecting/1", "127.0.0.1").ok());
  CollectiveGroup::Options foreign = RankOptions(0, 2);
  foreign.host = "203.0.113.9";  // reserved for documentation: nobody's address
  const Status status = Form(foreign, store).status();
  EXPECT_EQ(status.code(), StatusCode::kInvalidArgument) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr("203.0.113.9"));
}

TEST(CollectiveGroupTest, ReducerRefusesWhatCannotTrain) {
  const auto group = *Form({}, nullptr);
  EXPECT_EQ(group->MakeReducer({}).status().code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(group->MakeReducer({torch::ones({2})}).status().code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(group->MakeReducer({torch::Tensor()}).status().code(), StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace distill
