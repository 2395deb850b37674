#include "coordinator/cli/completion.h"

#include <vector>

#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"
#include "common/str_cat.h"

namespace distill::cli {
namespace {

std::vector<const CLI::App*> Commands(const CLI::App& app) {
  return app.get_subcommands([](const CLI::App*) { return true; });
}

struct Flags {
  std::vector<std::string> all;
  std::vector<std::string> with_value;
};

Flags FlagsOf(const CLI::App& app) {
  Flags flags;
  for (const CLI::Option* option : app.get_options()) {
    const bool has_value = option->get_items_expected_max() > 0;
    const auto add = [&](const std::string& name) {
      flags.all.push_back(name);
      if (has_value) flags.with_value.push_back(name);
    };
    for (const std::string& name : option->get_lnames()) add("--" + name);
    for (const std::string& name : option->get_snames()) add("-" + name);
  }
  return flags;
}

// What bash runs; @NAMES@ are filled in. Words after a flag that takes a value are not taken for commands.
constexpr char kScript[] = R"bash(# bash completion for distillctl; use: source <(distillctl completion bash)
_distillctl() {
  local cur=${COMP_WORDS[COMP_CWORD]} prev= command= values=' @VALUE_FLAGS@ ' i
  ((COMP_CWORD > 0)) && prev=${COMP_WORDS[COMP_CWORD - 1]}
  COMPREPLY=()
  # bash splits --flag=value at the equals sign.
  if [[ $cur == '=' ]]; then cur=; elif [[ $prev == '=' ]] && ((COMP_CWORD > 1)); then prev=${COMP_WORDS[COMP_CWORD - 2]}; fi
  for ((i = 1; i < COMP_CWORD; i++)); do
    if [[ $values == *" ${COMP_WORDS[i]} "* ]]; then
      ((i++))
      [[ ${COMP_WORDS[i]} == '=' ]] && ((i++))
      continue
    fi
    case ${COMP_WORDS[i]} in
      @COMMAND_PATTERN@) command=${COMP_WORDS[i]}; break ;;
    esac
  done
  case $command/$prev in
    report/-o|report/--out)
      compopt -o filenames 2>/dev/null
      mapfile -t COMPREPLY < <(compgen -f -- "$cur")
      return ;;
  esac
  case $prev in
    -o|--output) COMPREPLY=($(compgen -W 'table json' -- "$cur")); return ;;
    --state) COMPREPLY=($(compgen -W 'queued running succeeded failed cancelled' -- "$cur")); return ;;
    --color) COMPREPLY=($(compgen -W 'auto always never' -- "$cur")); return ;;
    --config|--tls-ca|--tls-cert|--tls-key|--token-file)
      compopt -o filenames 2>/dev/null
      mapfile -t COMPREPLY < <(compgen -f -- "$cur")
      return ;;
  esac
  # Any other flag's value is free text.
  [[ $values == *" $prev "* ]] && return
  local flags='@GLOBAL_FLAGS@'
  case $command in
@COMMAND_FLAGS@  esac
  if [[ $cur == -* ]]; then
    COMPREPLY=($(compgen -W "$flags" -- "$cur"))
    return
  fi
  case $command in
    '') COMPREPLY=($(compgen -W '@COMMANDS@' -- "$cur")) ;;
    submit)
      compopt -o filenames 2>/dev/null
      mapfile -t COMPREPLY < <(compgen -f -X '!*.yaml' -- "$cur"; compgen -f -X '!*.yml' -- "$cur"; compgen -d -- "$cur") ;;
    describe|file|watch|logs|cancel|history|results|report)
      # compgen expands its words like the shell does: only plain ids may reach it.
      COMPREPLY=($(compgen -W "$("${COMP_WORDS[0]}" --timeout 2s --quiet list --limit 50 2>/dev/null |
        LC_ALL=C grep -E '^[A-Za-z0-9._-]+$')" -- "$cur")) ;;
    completion) COMPREPLY=($(compgen -W 'bash' -- "$cur")) ;;
  esac
}
complete -F _distillctl distillctl
)bash";

}  // namespace

std::string BashCompletion(const CLI::App& app) {
  std::vector<std::string> names;
  const Flags global = FlagsOf(app);
  std::vector<std::string> with_value = global.with_value;
  std::string command_flags;
  for (const CLI::App* command : Commands(app)) {
    names.push_back(command->get_name());
    const Flags flags = FlagsOf(*command);
    with_value.insert(with_value.end(), flags.with_value.begin(), flags.with_value.end());
    StrAppend(&command_flags, "    ", command->get_name(), ") flags+=' ", absl::StrJoin(flags.all, " "), "' ;;\n");
  }
  return absl::StrReplaceAll(kScript, {{"@VALUE_FLAGS@", absl::StrJoin(with_value, " ")},
                                       {"@COMMAND_PATTERN@", absl::StrJoin(names, "|")},
                                       {"@GLOBAL_FLAGS@", absl::StrJoin(global.all, " ")},
                                       {"@COMMAND_FLAGS@", command_flags},
                                       {"@COMMANDS@", absl::StrJoin(names, " ")}});
}

}  // namespace distill::cli
