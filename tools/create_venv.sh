#!/usr/bin/env bash
# Creates the virtual environment $1 with the first Python >= 3.11 found ($PYTHON, if set). Needs no root.
set -euo pipefail
venv=$1

fail() {
    echo "$1" >&2
    exit 1
}

recent() {
    command -v "$1" >/dev/null && "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))'
}

python=
for candidate in ${PYTHON:-python3 python3.13 python3.12 python3.11}; do
    if recent "$candidate"; then
        python=$candidate
        break
    fi
done
[ -n "$python" ] || fail "No Python 3.11 or newer was found; install one and name it: make PYTHON=/path/to/python3.11"
"$python" -c 'import venv' 2>/dev/null || fail "$python has no venv module; install it: apt-get install python3-venv"

if "$python" -c 'import ensurepip; ensurepip.version()' 2>/dev/null; then
    "$python" -m venv --clear "$venv"
    exit
fi

# Debian and Ubuntu ship Python without ensurepip, but their pip can be fetched and unpacked by anybody.
"$python" -m venv --clear --without-pip "$venv"
if "$python" -m pip --version >/dev/null 2>&1; then
    "$python" -m pip --python "$venv/bin/python" install -qq pip
    exit
fi
download=$(mktemp -d)
trap 'rm -rf "$download"' EXIT
(cd "$download" && apt-get download python3-pip-whl >/dev/null 2>&1 && dpkg -x python3-pip-whl_*.deb .) || {
    rm -rf "$venv"
    fail "$python has neither ensurepip nor pip, and apt-get could not fetch one; install it: apt-get install python3-venv"
}
wheel=$(echo "$download"/usr/share/python-wheels/pip-*.whl)
"$venv/bin/python" "$wheel/pip" install -qq --no-index "$wheel"
