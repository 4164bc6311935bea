"""Tab completion in bash, zsh and fish: `eval "$(flowdiff -sc install=bash)"`, `flowdiff -sc install=fish | source`.

Hydra's own rules know scripts, but neither `python -m` nor a command's first word, and none of zsh: they are given
here. What a rule asks is Hydra's: `flowdiff train -sc query=bash`, with the line so far in COMP_LINE.
"""

import os
import re
import sys

from flowdiff.errors import ConfigError

OF_HYDRA = "train sample evaluate export"
FIRST = f"{OF_HYDRA} collect report dashboard --help --version"
BASH = """\
flowdiff_completion() {
    local words=($COMP_LINE) asked=() word
    word=${words[$COMP_CWORD]}
    if [[ ${words[1]} == -m && ${words[2]} == flowdiff.* ]]; then
        asked=("${words[0]}" -m "${words[2]}")
    elif [[ ${words[0]##*/} == flowdiff ]]; then
        case " OF_HYDRA " in *" ${words[1]} "*) asked=("${words[0]}" "${words[1]}") ;; esac
        if ((COMP_CWORD == 1)); then
            COMPREPLY=($(compgen -W "FIRST" -- "$word"))
            ((${#COMPREPLY[@]} == 1)) && COMPREPLY[0]+=" "
            return
        fi
    fi
    if ((${#asked[@]})); then
        local choices=$(COMP_LINE=$COMP_LINE COMP_POINT=$COMP_POINT "${asked[@]}" -sc query=bash)
        COMPREPLY=($(compgen -o nospace -o default -W "$choices" -- "$word"))
    fi
}
COMP_WORDBREAKS=${COMP_WORDBREAKS//=}
complete -o nospace -o default -F flowdiff_completion python python3 flowdiff
"""
ZSH = """\
_flowdiff() {
    if ((CURRENT == 2)); then
        compadd -- FIRST
    elif [[ " OF_HYDRA " == *" $words[2] "* ]]; then
        compadd -S '' -- ${=$(COMP_LINE="${(j: :)words[1,CURRENT]}" $words[1] $words[2] -sc query=bash)}
    else
        _files
    fi
}
(($+functions[compdef])) || { autoload -Uz compinit && compinit }
compdef _flowdiff flowdiff
"""
FISH = """\
function flowdiff_completion
    set -lx COMP_LINE (commandline -cp)
    set -l words (commandline -cpo)
    $words[1] $words[2] -sc query=fish
end
complete -c flowdiff -f -n 'test (count (commandline -cpo)) -eq 1' -a 'FIRST'
complete -c flowdiff -f -n '__fish_seen_subcommand_from OF_HYDRA' -a '(flowdiff_completion)'
"""
RULES = {"bash": BASH, "zsh": ZSH, "fish": FISH}
COMMAND = re.compile(r"^\s*(\S*python\S* -m flowdiff[. ]|(\S*/)?flowdiff )\w+")


def answer(words: list[str]) -> None:
    """Print the rule and leave, where it is asked for; put the line to complete into the form that Hydra reads."""
    shells = [word.partition("=")[2] for word in words if word.startswith("install=")]
    if {"-sc", "--shell-completion"} & set(words) and shells:
        if shells[0] not in RULES:
            sys.exit(str(ConfigError("install", shells[0], f"must be one of {', '.join(RULES)}")))
        print(RULES[shells[0]].replace("OF_HYDRA", OF_HYDRA).replace("FIRST", FIRST))
        sys.exit(0)
    os.environ["COMP_LINE"] = COMMAND.sub("flowdiff", os.environ.get("COMP_LINE", ""))
