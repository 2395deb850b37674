#include "coordinator/cli/text.h"

#include <gtest/gtest.h>

#include "coordinator/cli/table.h"
#include "coordinator/cli/terminal.h"

namespace distill::cli {
namespace {

TEST(TextTest, PrintableEscapesWhatATerminalWouldActOn) {
  EXPECT_EQ(Printable("plain, é 漢 text"), "plain, é 漢 text");
  EXPECT_EQ(Printable("a\nb\r\tc"), "a\\nb\\r\\tc");
  EXPECT_EQ(Printable("\x1b[2J\x7f"), "\\x1b[2J\\x7f");
  EXPECT_EQ(Printable(std::string_view("a\0b", 3)), "a\\x00b");
  EXPECT_EQ(Printable("\xc2\x9b"
                      "31m"),
            "\\u{9b}31m");  // CSI as one C1 control
  EXPECT_EQ(Printable("a\xe2\x80\xae"
                      "b"),
            "a\\u{202e}b");                                 // right-to-left override
  EXPECT_EQ(Printable("\xff\xc3"), "\\xff\\xc3");           // not UTF-8
  EXPECT_EQ(Printable("\xc0\xaf"), "\\xc0\\xaf");           // overlong '/'
  EXPECT_EQ(Printable("\xed\xa0\x80"), "\\xed\\xa0\\x80");  // a surrogate
}

TEST(TextTest, FindInvalidUtf8GivesTheFirstBadByte) {
  EXPECT_FALSE(FindInvalidUtf8("").has_value());
  EXPECT_FALSE(FindInvalidUtf8("é漢😀").has_value());
  EXPECT_EQ(FindInvalidUtf8("ab\xff"), 2u);
  EXPECT_EQ(FindInvalidUtf8("a\xe2\x82"), 1u);  // cut short
  EXPECT_EQ(FindInvalidUtf8("\xf5\x80\x80\x80"), 0u);
}

TEST(TextTest, WidthCountsColumnsNotBytes) {
  EXPECT_EQ(DisplayWidth("abc"), 3);
  EXPECT_EQ(DisplayWidth("é"), 1);
  EXPECT_EQ(DisplayWidth("漢字"), 4);
  EXPECT_EQ(DisplayWidth("e\xcc\x81"), 1);  // combining acute
  EXPECT_EQ(PadRight("漢", 4), "漢  ");
  EXPECT_EQ(PadLeft("7", 3), "  7");
  EXPECT_EQ(PadLeft("1234", 3), "1234");
}

TEST(TextTest, TruncateKeepsWithinTheWidthAndShowsThatItCut) {
  EXPECT_EQ(Truncate("abcdef", 6, true), "abcdef");
  EXPECT_EQ(Truncate("abcdef", 5, true), "abcd…");
  EXPECT_EQ(Truncate("abcdef", 5, false), "ab...");
  EXPECT_EQ(Truncate("漢字漢字", 6, true), "漢字…");  // a wide letter is not split
  EXPECT_EQ(Truncate("abcdef", 0, true), "");
  EXPECT_EQ(Truncate("abcdef", 2, false), "ab");
}

TEST(TextTest, RenderLineCutsAcrossSpansAndColoursEachPiece) {
  const std::vector<Span> spans = {{"abc", Style::kBold}, {"def"}, {"ghi", Style::kRed}};
  EXPECT_EQ(RenderLine(spans, {.color = false, .width = 9}), "abcdefghi");
  EXPECT_EQ(RenderLine(spans, {.color = true, .width = 9}), "\x1b[1mabc\x1b[0mdef\x1b[31mghi\x1b[0m");
  EXPECT_EQ(RenderLine(spans, {.color = false, .width = 8}), "abcdefg…");
  EXPECT_EQ(RenderLine(spans, {.color = false, .width = 6}), "abcde…");
  EXPECT_EQ(RenderLine(spans, {.color = false, .utf8 = false, .width = 7}), "abcd...");
  EXPECT_EQ(RenderLine({{"a\x1b[5m"}}, {.color = true, .width = 80}), "a\\x1b[5m");
}

TEST(TableTest, AlignsColumnsAndLeavesNoBlanksAtLineEnds) {
  Table table({Left("NAME"), Right("SIZE"), Left("NOTE")});
  table.AddRow({{"a"}, {"1 B"}, {""}});
  table.AddRow({{"long-name"}, {"1024 B"}, {"x\ny"}});
  table.AddRow({{"漢"}});
  EXPECT_EQ(table.Render({}),
            "NAME         SIZE  NOTE\n"
            "a             1 B\n"
            "long-name  1024 B  x\\ny\n"
            "漢\n");
  EXPECT_EQ(table.Render({}, 2).substr(0, 8), "  NAME  ");
}

TEST(TableTest, ColoursDoNotCountAsWidth) {
  Table table({Left("A"), Left("B")});
  table.AddRow({{"red", Style::kRed}, {"x"}});
  table.AddRow({{"plain"}, {"y"}});
  EXPECT_EQ(table.Render({.color = true}),
            "\x1b[1mA\x1b[0m      \x1b[1mB\x1b[0m\n"
            "\x1b[31mred\x1b[0m    x\n"
            "plain  y\n");
}

TEST(LiveScreenTest, RedrawsInPlaceAndClearsWhatIsLeft) {
  LiveScreen screen;
  EXPECT_EQ(screen.Draw({"one", "two"}, 80), "one\x1b[K\ntwo\x1b[K\n\x1b[J");
  EXPECT_EQ(screen.Draw({"1"}, 80), "\r\x1b[2A1\x1b[K\n\x1b[J");
  EXPECT_EQ(screen.Draw({}, 80), "\r\x1b[1A\x1b[J");
  EXPECT_EQ(screen.Draw({"x"}, 80), "x\x1b[K\n\x1b[J");
}

TEST(LiveScreenTest, LinesThatANarrowerTerminalWrapsTakeMoreRows) {
  LiveScreen screen;
  screen.Draw({"\x1b[1m0123456789\x1b[0m", ""}, 20);
  // Ten columns of text in a terminal of four columns: three rows; the empty line: one.
  EXPECT_EQ(screen.Draw({"x"}, 4), "\r\x1b[4Ax\x1b[K\n\x1b[J");
}

}  // namespace
}  // namespace distill::cli
