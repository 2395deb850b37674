// Percent-encoding and forms (application/x-www-form-urlencoded: queries, bodies of posts).
#ifndef DISTILL_COMMON_HTTP_FORM_H_
#define DISTILL_COMMON_HTTP_FORM_H_

#include <map>
#include <string>
#include <string_view>

namespace distill {

// What is no valid escape stays as it is. `plus_is_space`: as forms have it; a '+' in a path is a '+'.
std::string PercentDecode(std::string_view text, bool plus_is_space);

// "a=1&b=x+y%21" by name, decoded. A field without '=' has the value "". Of several with one name the last counts.
std::map<std::string, std::string> ParseForm(std::string_view text);

}  // namespace distill

#endif  // DISTILL_COMMON_HTTP_FORM_H_
