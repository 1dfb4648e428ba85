#!/bin/sh
# What `nbdev_install_hooks` does for git, with the programs of .venv and without touching ~/.jupyter.
set -eu
cd "$(dirname "$0")/.."
git rev-parse --git-dir >/dev/null 2>&1 || { echo "hooks: not a git repository" >&2; exit 1; }
hook=$(git rev-parse --git-path hooks)/post-merge
if [ -e "$hook" ] && ! grep -q nbdev_trust "$hook"; then
    echo "hooks: $hook exists already: add the line '.venv/bin/nbdev_trust' to it" >&2
    exit 1
fi
mkdir -p "$(dirname "$hook")"
printf '#!/bin/sh\n.venv/bin/nbdev_trust\n' >"$hook"
chmod +x "$hook"
git config --local include.path ../.gitconfig
echo "hooks: notebooks merge cell by cell and are trusted after a merge"
