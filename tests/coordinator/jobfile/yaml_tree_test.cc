#include "coordinator/jobfile/yaml_tree.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "coordinator/jobfile/yaml_override.h"

namespace distill {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing::StartsWith;

std::string Error(const std::string& text) {
  const StatusOr<YamlNodePtr> node = ParseYaml(text, {});
  if (node.ok()) return "accepted";
  EXPECT_EQ(node.status().code(), StatusCode::kInvalidArgument);
  return std::string(node.status().message());
}

TEST(YamlTreeTest, KeepsValuesAndTheirPlaces) {
  const YamlNodePtr root = ParseYaml("a: 1\nb:\n  - x\n  - 'y'\n", {}).value();
  ASSERT_EQ(root->kind, YamlNode::Kind::kMap);
  EXPECT_EQ(root->Find("a")->text, "1");
  EXPECT_FALSE(root->Find("a")->quoted);
  const YamlNodePtr list = root->Find("b");
  ASSERT_EQ(list->items.size(), 2u);
  EXPECT_TRUE(list->items[1]->quoted);
  EXPECT_EQ(list->items[1]->mark.line, 4);
  EXPECT_EQ(list->items[1]->mark.column, 5);
  EXPECT_EQ(root->Find("c"), nullptr);
  EXPECT_EQ(ParseYaml("a: ~\nb:\n", {}).value()->Find("b")->kind, YamlNode::Kind::kNull);
}

TEST(YamlTreeTest, AnEmptyTextIsNothing) {
  EXPECT_EQ(ParseYaml("", {}).value()->kind, YamlNode::Kind::kNull);
  EXPECT_EQ(ParseYaml("# only a comment\n", {}).value()->kind, YamlNode::Kind::kNull);
}

TEST(YamlTreeTest, AliasesStandForTheirAnchors) {
  const YamlNodePtr root = ParseYaml("a: &x {k: 1}\nb: *x\n", {}).value();
  EXPECT_EQ(root->Find("b")->Find("k")->text, "1");
}

TEST(YamlTreeTest, RefusesWhatIsNotPlainYaml) {
  EXPECT_THAT(Error("a: 1\na: 2\n"),
              AllOf(StartsWith("job.yaml:2:1: "), HasSubstr("duplicate key 'a' (first in line 1)")));
  EXPECT_THAT(Error("a: 1\n---\nb: 2\n"), HasSubstr("second YAML document"));
  EXPECT_THAT(Error("a: !!python/object:os.system x\n"), HasSubstr("tags are not supported"));
  EXPECT_THAT(Error("a: &x 1\nb: {<<: *x}\n"), HasSubstr("merge keys"));
  EXPECT_THAT(Error("? [a, b]\n: 1\n"), HasSubstr("key must be a plain name"));
  EXPECT_THAT(Error("a: &x [*x]\n"), HasSubstr("alias"));
  EXPECT_THAT(Error("a: *nowhere\n"), StartsWith("job.yaml:1:4: "));
  EXPECT_THAT(Error("a: [1, 2\n"), StartsWith("job.yaml:"));
  EXPECT_THAT(Error("a: {b: 1\nc: 2"), StartsWith("job.yaml:"));
  EXPECT_THAT(Error("\tname: x\n"), StartsWith("job.yaml:1:"));
}

TEST(YamlTreeTest, RefusesBytesThatAreNotText) {
  EXPECT_THAT(Error("a: 1\nb: \xff\xfe\n"), AllOf(StartsWith("job.yaml:2:4: "), HasSubstr("UTF-8")));
  EXPECT_THAT(Error(std::string("a: x\0y", 6)), AllOf(StartsWith("job.yaml:1:5: "), HasSubstr("UTF-8")));
  EXPECT_THAT(Error("a: \xc0\xaf"), HasSubstr("UTF-8"));                // overlong '/'
  EXPECT_THAT(Error("a: \xed\xa0\x80"), HasSubstr("UTF-8"));            // surrogate
  EXPECT_THAT(Error("a: \xe2\x82"), HasSubstr("UTF-8"));                // truncated
  EXPECT_THAT(Error(std::string("a\0:\0 \0", 6)), HasSubstr("UTF-8"));  // UTF-16
  EXPECT_EQ(ParseYaml("a: \xe2\x82\xac\n", {}).value()->Find("a")->text, "\xe2\x82\xac");
}

TEST(YamlTreeTest, LimitsSizeDepthAndAliases) {
  EXPECT_THAT(Error(std::string(kMaxYamlBytes + 1, ' ')), HasSubstr("at most 1048576"));
  EXPECT_EQ(Error(std::string(kMaxYamlBytes, ' ')), "accepted");
  for (const int depth : {100, 10000}) {
    EXPECT_THAT(Error(std::string(depth, '[')), StartsWith("job.yaml:1:")) << depth;
    EXPECT_THAT(Error(std::string(depth, '[') + std::string(depth, ']')), HasSubstr("nested deeper than 64")) << depth;
    std::string map;
    for (int i = 0; i < depth; ++i) map += "{a: ";
    EXPECT_THAT(Error(map), StartsWith("job.yaml:1:")) << depth;
    EXPECT_THAT(Error(std::string(depth, '-')), AnyOf(StartsWith("job.yaml:1:"), "accepted")) << depth;
  }
  std::string block;
  for (int i = 0; i < 300; ++i) block += std::string(i, ' ') + "a:\n";
  EXPECT_THAT(Error(block), HasSubstr("nested deeper than 64"));
  // "Billion laughs": ten levels of ten aliases each.
  std::string bomb = "l0: &l0 [x, x, x, x, x, x, x, x, x, x]\n";
  for (int i = 1; i < 10; ++i) {
    bomb += "l" + std::to_string(i) + ": &l" + std::to_string(i) + " [";
    for (int j = 0; j < 10; ++j) bomb += (j ? ", *l" : "*l") + std::to_string(i - 1);
    bomb += "]\n";
  }
  EXPECT_THAT(Error(bomb), HasSubstr("aliases expand to more than"));
  // Depth by aliases: each level nests the one before.
  std::string tower = "t0: &t0 [x]\n";
  for (int i = 1; i < 100; ++i) {
    tower += "t" + std::to_string(i) + ": &t" + std::to_string(i) + " [*t" + std::to_string(i - 1) + "]\n";
  }
  EXPECT_THAT(Error(tower), HasSubstr("nested deeper than 64"));
  std::string wide = "a: [";
  for (size_t i = 0; i <= kMaxYamlNodes; ++i) wide += "1,";
  EXPECT_THAT(Error(wide + "1]"), HasSubstr("more than 100000 values"));
}

TEST(YamlTreeTest, EveryPrefixOfAFileIsAnsweredWithoutHarm) {
  const std::string text = "a: &x {b: [1, 'two', \"three\\n\"], c: |\n  block\n  }\nd: *x\n? e\n: f\n";
  for (size_t n = 0; n <= text.size(); ++n) {
    const StatusOr<YamlNodePtr> node = ParseYaml(text.substr(0, n), {});
    if (!node.ok()) {
      EXPECT_THAT(std::string(node.status().message()), StartsWith("job.yaml:")) << n;
    }
  }
}

StatusOr<YamlNodePtr> Override(const std::string& yaml, const std::string& text) {
  YamlSource source;
  source.overrides = {text};
  return ApplyOverride(ParseYaml(yaml, source).value(), source, 0);
}

TEST(YamlOverrideTest, SetsAddsAndReplaces) {
  const std::string yaml = "a: 1\nlist: [{k: 1}, {k: 2}]\n";
  EXPECT_EQ(Override(yaml, "a=5").value()->Find("a")->text, "5");
  EXPECT_EQ(Override(yaml, "list.1.k=9").value()->Find("list")->items[1]->Find("k")->text, "9");
  EXPECT_EQ(Override(yaml, "new.deep.key=x").value()->Find("new")->Find("deep")->Find("key")->text, "x");
  EXPECT_EQ(Override(yaml, "a=[1, 2]").value()->Find("a")->items.size(), 2u);
  EXPECT_EQ(Override(yaml, "a=").value()->Find("a")->kind, YamlNode::Kind::kNull);
  EXPECT_EQ(Override(yaml, "a=x=y").value()->Find("a")->text, "x=y");
}

TEST(YamlOverrideTest, ChangesOnlyTheNamedUseOfAnAlias) {
  const YamlNodePtr root = Override("a: &x {k: 1}\nb: *x\n", "b.k=2").value();
  EXPECT_EQ(root->Find("a")->Find("k")->text, "1");
  EXPECT_EQ(root->Find("b")->Find("k")->text, "2");
}

TEST(YamlOverrideTest, NamesItselfInErrors) {
  const std::string yaml = "a: 1\nlist: [1]\n";
  for (const auto& [text, message] : {std::pair{"a", "expected PATH=VALUE"},
                                      {"=1", "empty"},
                                      {"a..b=1", "empty"},
                                      {"list.1=2", "no position in a list of 1"},
                                      {"list.x=2", "no position"},
                                      {"a.b=2", "plain value '1'"},
                                      {"a=[1", ""}}) {
    const StatusOr<YamlNodePtr> result = Override(yaml, text);
    ASSERT_FALSE(result.ok()) << text;
    EXPECT_THAT(std::string(result.status().message()),
                AllOf(StartsWith(std::string("override '") + text + "': "), HasSubstr(message)));
  }
}

}  // namespace
}  // namespace distill
