#!/usr/bin/env bash
# Gets message catalogues of translated programs: English with German and Chinese (or other languages).
#
#     bash launch/catalogues.sh [FOLDER [LANGUAGE...]]      default: catalogues de zh_CN
#
# Downloads Debian packages with apt-get (about 180 MB; nothing is installed, no root needed), keeps only their
# *.mo files of these languages in FOLDER and deletes the rest. For Debian and Ubuntu; a package that the release
# does not have is left out with a note. The programs' licences hold for their translations.
set -euo pipefail

folder=$(realpath -m "${1:-catalogues}")
languages=("${@:2}")
[ ${#languages[@]} -gt 0 ] || languages=(de zh_CN)

packages=(
  libreoffice-l10n-de libreoffice-l10n-zh-cn gcc-12-locales blender-data inkscape gimp-data digikam-data gramps vlc-l10n
  evolution-common git gnucash-common darktable krita-l10n audacity-data gnumeric-common libgtk-3-common
  util-linux-locales freeciv-data hugin-data gnome-control-center-data kate5-data aptitude-common mutt coreutils dpkg
)
# Ubuntu keeps the translations of its main packages in these.
if grep -qi '^ID=ubuntu' /etc/os-release; then
  packages+=(language-pack-de-base language-pack-gnome-de-base language-pack-zh-hans-base language-pack-gnome-zh-hans-base)
fi

patterns=()
for language in "${languages[@]}"; do patterns+=("*/$language/LC_MESSAGES/*.mo"); done
mkdir -p "$folder"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
chmod 755 "$work"
cd "$work"
for package in "${packages[@]}"; do
  if ! apt-get download -qq "$package" 2> error; then
    echo "$package: left out ($(tail -n 1 error))" >&2
    continue
  fi
  mkdir "$work/files"
  dpkg-deb --fsys-tarfile ./*.deb | tar -x -C "$work/files" --wildcards "${patterns[@]}" 2> /dev/null || true
  mkdir -p "$folder/$package"
  cp -r "$work/files/." "$folder/$package"
  rm -r "$work/files" ./*.deb
  echo "$package: $(find "$folder/$package" -name '*.mo' | wc -l) catalogues"
done

if [ -z "$(find "$folder" -name '*.mo' -print -quit)" ]; then
  echo "no catalogue was found; run 'apt-get update' as root once, and check how the languages are called (de, zh_CN)." >&2
  exit 1
fi
echo "train on them with --config.data.path=$(printf %q "$folder") --config.data.languages=$(IFS=,; echo "${languages[*]}")"
