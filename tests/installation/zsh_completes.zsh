# zsh_completes.zsh DIRECTORY LINE LAST: what an interactive zsh offers after LINE, with the functions in DIRECTORY, until
# it offers LAST.
zmodload zsh/zpty
zpty shell zsh -f -i
zpty -w shell "PS1=; fpath=($1 \$fpath); autoload -Uz compinit; compinit -u -D; LISTMAX=0; echo read''y"
zpty -r shell line '*ready*'
# Nothing may be typed after the key: what waits to be read keeps zsh from listing.
zpty -w -n shell "$2"$'\t'
zpty -r shell offered "*$3*"
print -r -- "$offered"
zpty -d shell
