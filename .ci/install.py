"""Install packages by uv, in a quarter of pip's time and as pip's configuration says; by pip where uv cannot.

Run it by the environment's own Python, in the repository: ``python .ci/install.py -e '.[light]'``. Packages that
``UNUSED`` in the environment names are left out, though others ask for them, where uv installs.
"""

import ast
import os
import subprocess
import sys
from tempfile import NamedTemporaryFile

PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
# pip's setting → uv's variable, and what stands between several values
VARIABLES = {
    "index-url": ("UV_DEFAULT_INDEX", " "),
    "extra-index-url": ("UV_INDEX", " "),
    "find-links": ("UV_FIND_LINKS", ","),
    "no-index": ("UV_NO_INDEX", " "),
    "constraint": ("UV_CONSTRAINT", " "),
    "trusted-host": ("UV_INSECURE_HOST", " "),
    "cert": ("SSL_CERT_FILE", " "),
    "proxy": ("ALL_PROXY", " "),
}


def variables() -> dict[str, str]:
    """What pip's files and environment say, as uv's environment; uv reads none of it."""
    told = subprocess.run([*PIP, "config", "list"], capture_output=True, text=True, check=True).stdout.splitlines()
    found = {}
    for line in sorted(told, key=lambda line: (line.startswith(":env:"), line)):  # the environment's before a file's
        name, _, value = line.partition("=")
        found[name.rpartition(".")[2]] = ast.literal_eval(value)
    found["constraint"] = f"constraints.txt {found.get('constraint', '')}"
    given = {VARIABLES[name]: value.split() for name, value in found.items() if name in VARIABLES}
    return {variable: between.join(values) for (variable, between), values in given.items()}


def by_uv(arguments: list[str]) -> bool:
    """Whether uv has installed them. Its choice among indexes is pip's: the best version of all."""
    if subprocess.run([*PIP, "install", "--quiet", "uv"]).returncode:
        return False
    uv = [sys.executable, "-m", "uv", "pip", "install", "--python", sys.executable]
    best = ["--index-strategy", "unsafe-best-match"]
    with NamedTemporaryFile("w", suffix=".txt") as unused:
        print(*os.environ.get("UNUSED", "").split(), sep="\n", file=unused, flush=True)
        given = variables() | {"UV_EXCLUDE": unused.name}
        return not subprocess.run([*uv, "--quiet", *best, *arguments], env=os.environ | given).returncode


if __name__ == "__main__":
    # neither compiles: what is imported is compiled then, and all of these packages would take a minute
    if not by_uv(sys.argv[1:]):
        print("uv could not; pip installs.", file=sys.stderr)
        pip = [*PIP, "install", "--quiet", "--no-compile", "-c", "constraints.txt", *sys.argv[1:]]
        sys.exit(subprocess.run(pip).returncode)
