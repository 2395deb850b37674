#include "coordinator/jobfile/yaml_tree.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "coordinator/jobfile/yaml_override.h"

namespace distill {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing::StartsWith;

// What was added last.
std::string LastProblem(const Problems& problems) {
  const JobProblem problem = problems.Sorted().back();
  return problems.source().Describe(problem.mark) + ": " + problem.text;
}

YamlNodePtr Parse(const std::string& text, std::string* error = nullptr) {
  Problems problems(YamlSource{});
  YamlNodePtr root = ParseYaml(text, &problems);
  EXPECT_EQ(root == nullptr, !problems.empty());
  if (root == nullptr && error != nullptr) *error = LastProblem(problems);
  return root;
}

std::string Error(const std::string& text) {
  std::string error = "accepted";
  Parse(text, &error);
  return error;
}

TEST(YamlTreeTest, KeepsValuesAndTheirPlaces) {
  const YamlNodePtr root = Parse("a: 1\nb:\n  - x\n  - 'y'\n");
  ASSERT_EQ(root->kind, YamlNode::Kind::kMap);
  EXPECT_EQ(root->Find("a")->text, "1");
  EXPECT_FALSE(root->Find("a")->quoted);
  const YamlNodePtr list = root->Find("b");
  ASSERT_EQ(list->items.size(), 2u);
  EXPECT_TRUE(list->items[1]->quoted);
  EXPECT_EQ(list->items[1]->mark.line, 4);
  EXPECT_EQ(list->items[1]->mark.column, 5);
  EXPECT_EQ(root->Find("c"), nullptr);
  EXPECT_EQ(Parse("a: ~\nb:\n")->Find("b")->kind, YamlNode::Kind::kNull);
}

TEST(YamlTreeTest, AnEmptyTextIsNothing) {
  EXPECT_EQ(Parse("")->kind, YamlNode::Kind::kNull);
  EXPECT_EQ(Parse("# only a comment\n")->kind, YamlNode::Kind::kNull);
}

// Editors and generators end files with "---" or "...", and some begin them with a second "---".
TEST(YamlTreeTest, EmptyDocumentsBesideTheOneAreNone) {
  for (const char* text :
       {"a: 1\n---\n", "a: 1\n...\n", "a: 1\n---\n# comment\n", "a: 1\n...\n---\n", "---\na: 1\n---\n",
        "---\n---\na: 1\n", "# c\n%YAML 1.2\n---\na: 1\n...\n# end\n", "a: 1\n---\n---\n---\n"}) {
    std::string error;
    const YamlNodePtr root = Parse(text, &error);
    ASSERT_NE(root, nullptr) << text << error;
    EXPECT_EQ(root->Find("a")->text, "1") << text;
  }
  EXPECT_THAT(Error("---\n---\na: 1\n---\nb: 2\n"), StartsWith("job.yaml:5:1: a second YAML document begins here"));
}

TEST(YamlTreeTest, AliasesStandForTheirAnchors) {
  const YamlNodePtr root = Parse("a: &x {k: 1}\nb: *x\n");
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
  EXPECT_EQ(Parse("a: \xe2\x82\xac\n")->Find("a")->text, "\xe2\x82\xac");
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
    EXPECT_THAT(Error(text.substr(0, n)), AnyOf("accepted", StartsWith("job.yaml:"))) << n;
  }
}

YamlNodePtr Override(const std::string& yaml, const std::string& text, std::string* error = nullptr) {
  YamlSource source;
  source.overrides = {text};
  Problems problems(source);
  YamlNodePtr root = ApplyOverride(ParseYaml(yaml, &problems), 0, &problems);
  if (root == nullptr && error != nullptr) *error = LastProblem(problems);
  return root;
}

TEST(YamlOverrideTest, SetsAddsAndReplaces) {
  const std::string yaml = "a: 1\nlist: [{k: 1}, {k: 2}]\n";
  EXPECT_EQ(Override(yaml, "a=5")->Find("a")->text, "5");
  EXPECT_EQ(Override(yaml, "list.1.k=9")->Find("list")->items[1]->Find("k")->text, "9");
  EXPECT_EQ(Override(yaml, "new.deep.key=x")->Find("new")->Find("deep")->Find("key")->text, "x");
  EXPECT_EQ(Override(yaml, "a=[1, 2]")->Find("a")->items.size(), 2u);
  EXPECT_EQ(Override(yaml, "a=")->Find("a")->kind, YamlNode::Kind::kNull);
  EXPECT_EQ(Override(yaml, "a=x=y")->Find("a")->text, "x=y");
}

TEST(YamlOverrideTest, ChangesOnlyTheNamedUseOfAnAlias) {
  const YamlNodePtr root = Override("a: &x {k: 1}\nb: *x\n", "b.k=2");
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
    std::string error;
    ASSERT_EQ(Override(yaml, text, &error), nullptr) << text;
    EXPECT_THAT(error, AllOf(StartsWith(std::string("override '") + text + "': "), HasSubstr(message)));
  }
}

}  // namespace
}  // namespace distill
