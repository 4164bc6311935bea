"""Tab completion in bash. Hydra's knows scripts, but not `python -m`: the rule for bash is given here."""

import os
import re
import sys

COMPLETION = """\
flowdiff_completion() {
    local words=($COMP_LINE)
    if [ "${words[1]}" == "-m" ] && [[ "${words[2]}" == flowdiff.* ]]; then
        local choices=$(COMP_LINE=$COMP_LINE COMP_POINT=$COMP_POINT ${words[0]} -m ${words[2]} -sc query=bash)
        COMPREPLY=($(compgen -o nospace -o default -W "$choices" -- "${words[$COMP_CWORD]}"))
    fi
}
COMP_WORDBREAKS=${COMP_WORDBREAKS//=}
complete -o nospace -o default -F flowdiff_completion python python3
"""


def answer(words: list[str]) -> None:
    """Print the rule and leave, where it is asked for; put the line to complete into the form that Hydra reads."""
    if {"-sc", "--shell_completion"} & set(words) and "install=bash" in words:
        print(COMPLETION)
        sys.exit(0)
    line = os.environ.get("COMP_LINE", "")
    os.environ["COMP_LINE"] = re.sub(r"^\S*python\S* -m flowdiff\.\w+", "flowdiff", line)
