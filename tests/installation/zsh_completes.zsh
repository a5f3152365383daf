# zsh_completes.zsh DIRECTORY LINE: what an interactive zsh offers after LINE, with the functions in DIRECTORY.
zmodload zsh/zpty
zpty shell zsh -f -i
zpty -w shell "PS1=; fpath=($1 \$fpath); autoload -Uz compinit; compinit -u -D; zstyle ':completion:*' list-colors no=; setopt no_list_ambiguous; LISTMAX=0; echo read''y"
zpty -r shell line '*ready*'
zpty -w -n shell "$2"$'\t\t'
zpty -w -n shell $'\x15'"echo the''end"$'\r'
all=
while zpty -r shell line '*'$'\n'; do
    all+=$line
    [[ $line == *theend* ]] && break
done
print -r -- "$all"
zpty -d shell
