#!/bin/sh
# layer.sh FOLDER ARGUMENTS...: what pip installs lies in FOLDER as it will lie in the image's root, with bytecode that
# is never looked at again: nobody may write there.
set -eu
folder=$1
shift
python=/opt/lexico/bin/python
/build/bin/pip --python "$python" install --root "$folder" --no-cache-dir --no-deps --no-compile \
  --no-warn-script-location "$@"
# What torch brings beside itself: tests, and headers for compilers.
for torch in "$folder"/opt/lexico/lib/python3*/site-packages/torch; do
  [ -d "$torch" ] || continue
  rm -rf "$torch/include" "$torch/share/cmake" "$torch/test"
  find "$torch/bin" -type f ! -name torch_shm_manager -delete
done
# A few modules are for other Pythons, or templates: these do not compile, and nothing imports them.
"$python" -m compileall -qq -j 0 --invalidation-mode unchecked-hash -s "$folder" -p / "$folder/opt/lexico/lib" || true
