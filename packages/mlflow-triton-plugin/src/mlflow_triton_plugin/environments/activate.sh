# Triton's Python backend sources this before it starts a model. The packages here are for one minor
# version of Python; the Python itself is the server's own, and is linked where this was unpacked.
_root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)"
_found="$(python3 -I -c 'import sys; print("%d.%d" % sys.version_info[:2], sys._base_executable)')"
if [ "${_found%% *}" != "@PYTHON@" ]; then
    # model.py says it to who deploys: what is written here only the server's log has
    export MLFLOW_TRITON_ENVIRONMENT="the environment is packed for Python @PYTHON@, and the server \
has ${_found%% *}; pack it for that one: -C env_python=${_found%% *}"
else
    if [ ! -x "$_root/bin/python3" ]; then
        # in a folder of its own first: several instances start at once
        _made="$(mktemp -d "$_root/bin/.linking-XXXXXX")"
        ln -s "${_found#* }" "$_made/python3"
        printf 'home = %s\ninclude-system-site-packages = false\n' \
            "$(dirname "${_found#* }")" > "$_made/pyvenv.cfg"
        mv -f "$_made/pyvenv.cfg" "$_root/pyvenv.cfg"
        mv -fT "$_made/python3" "$_root/bin/python3"
        rmdir "$_made"
    fi
    export VIRTUAL_ENV="$_root" PATH="$_root/bin:$PATH"
    unset PYTHONHOME
fi
