#!/usr/bin/env bash
# The program from outside: exit codes, one clear sentence for every bad input, no litter, and pipes that close early.
#   tests/cli_test.sh build/heed
set -uo pipefail
heed=$(realpath "$1")
data=$(realpath "$(dirname "$0")/data")
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder" || exit 1
export LC_ALL=C.UTF-8 OMP_NUM_THREADS=2
unset COLUMNS NO_COLOR
checks=0 failures=0

fail() {
  failures=$((failures + 1))
  printf 'FAILED: %s\n' "$1"
  [ -s "$folder/.err" ] && sed 's/^/    stderr: /' "$folder/.err" | cut -c1-300 | head -n 5
}

litter() { find . -mindepth 1 ! -name .out ! -name .err | sort; }

# rejects CODE PATTERN ARGUMENTS...: exit code CODE, nothing on standard output, on standard error one line "heed: ..." that
# PATTERN (an extended regular expression) matches, and no file made or taken away. Standard input is $input.
input=/dev/null
rejects() {
  local code=$1 pattern=$2 before after actual
  shift 2
  checks=$((checks + 1))
  before=$(litter)
  timeout 60 "$heed" "$@" <"$input" >.out 2>.err
  actual=$?
  after=$(litter)
  local what="heed $*"
  [ "$actual" = "$code" ] || fail "$what: exit code $actual, not $code"
  [ -s .out ] && fail "$what: wrote to standard output"
  [ "$(wc -l <.err)" = 1 ] || fail "$what: $(wc -l <.err) lines on standard error, not 1"
  grep -q '^heed: ' .err || fail "$what: the message does not start with heed:"
  grep -qE -- "$pattern" .err || fail "$what: the message does not say '$pattern'"
  [ "$(wc -c <.err)" -lt 600 ] || fail "$what: the message is longer than people read"
  [ "$before" = "$after" ] || fail "$what: left litter: $(diff <(echo "$before") <(echo "$after") | tr '\n' ' ')"
}

# accepts PATTERN ARGUMENTS...: exit code 0 and PATTERN on standard output.
accepts() {
  local pattern=$1 actual
  shift
  checks=$((checks + 1))
  timeout 300 "$heed" "$@" <"$input" >.out 2>.err
  actual=$?
  [ "$actual" = 0 ] || fail "heed $*: exit code $actual, not 0"
  grep -qE -- "$pattern" .out || fail "heed $*: standard output does not say '$pattern'"
}

# runs ARGUMENTS...: exit code 0, and nothing on standard output.
runs() {
  checks=$((checks + 1))
  timeout 300 "$heed" "$@" <"$input" >.out 2>.err || fail "heed $*: exit code $?, not 0"
  [ -s .out ] && fail "heed $*: wrote to standard output"
}

check() { # NAME command...
  local name=$1
  shift
  checks=$((checks + 1))
  "$@" || fail "$name"
}

# ---- Help and versions ----
accepts 'explain' --help
accepts '^heed [0-9]+\.[0-9]+\.[0-9]+$' --version
for command in info explain demo train 'train translate' translate convert eval 'eval translate' \
  'train classify' classify 'eval classify' 'train segment' segment 'eval segment' 'data scenes'; do
  # shellcheck disable=SC2086  # the command is words
  accepts "[Uu]sage: heed $command" $command --help
done
accepts '--minutes.*0' train translate --help
accepts '[Ee]xample' translate --help
accepts '^target' info
accepts '"target"' info --json
accepts 'weigh' explain 'hello world' 'AI and deep learning'

# ---- Usage: 2 ----
rejects 2 'needs a command'
rejects 2 'no command.*frobnicate.*translate' frobnicate
rejects 2 'no command.*translate' train frobnicate
rejects 2 'needs a command' train
rejects 2 'needs a command' eval
rejects 2 '--frobnicate' --frobnicate
rejects 2 '--frobnicate.*heed info --help' info --frobnicate
rejects 2 'TEXT' explain hello
rejects 2 'QUERY' explain
rejects 2 'no words' explain '' text
rejects 2 'no words' explain hello '   '
rejects 2 '--dim' explain --dim 0 a b
rejects 2 '--dim' explain --dim many a b
rejects 2 '--dim' explain --dim 99999999999999999999 a b
rejects 2 '--beam' translate somewhere --beam 0
rejects 2 '--beam' translate somewhere --beam -3
rejects 2 'DIR' convert
rejects 2 'one of --po, --tmx, --in' translate somewhere --po a.po --tmx a.tmx --out b
rejects 2 'one of --po, --tmx, --in' translate somewhere text --in a.txt
rejects 2 '--out' translate somewhere --po a.po
rejects 2 '--out' translate somewhere --tmx a.tmx
rejects 2 '--json' translate somewhere --po a.po --out b.po --confidence
rejects 2 '--nbest 5 is more than --beam 4' translate somewhere --nbest 5 --beam 4
rejects 2 '--tmx' translate somewhere --po a.po --out b.po --target-lang de
rejects 2 '--least-confidence' translate somewhere --least-confidence 2
rejects 2 '\.gz' translate somewhere --in a.txt --out b.gz
rejects 2 '--out' train translate --pairs a.tsv
rejects 2 '--pairs' train translate --out model
rejects 2 '--arch' train translate --pairs a.tsv --out model --arch cnn
rejects 2 '--target' train translate --source a --out model
rejects 2 '--pairs|--source' train translate --pairs a.tsv --source a --target b --out model
rejects 2 '--heads' train translate --pairs a.tsv --out model --arch rnn --heads 2
rejects 2 '--hidden' train translate --pairs a.tsv --out model --arch transformer --hidden 2
rejects 2 'are for a new model' train translate --pairs a.tsv --out model --from model --arch transformer
rejects 2 'are for a new model' train translate --pairs a.tsv --out model --from model --lowercase
rejects 2 '--minutes' train translate --pairs a.tsv --out model --minutes -1
rejects 2 '--minutes' train translate --pairs a.tsv --out model --minutes nan
rejects 2 '--steps' train translate --pairs a.tsv --out model --steps 1.5
rejects 2 '--seed' train translate --pairs a.tsv --out model --seed -1
rejects 2 '--pairs' eval translate model
rejects 2 '--tokenize' eval translate model --pairs a.tsv --tokenize ja
rejects 2 '--minutes' demo --minutes 0
rejects 2 'DATA' train classify --out model
rejects 2 '--out' train classify data
rejects 2 '--arch' train classify data --out model --arch rnn
rejects 2 '--freeze-backbone needs --from' train classify data --out model --freeze-backbone
rejects 2 'are for a new model' train classify data --out model --from model --width 8
rejects 2 '--classes names the numbers' train classify data --out model --classes names.txt
rejects 2 'PICTURE' classify
rejects 2 '--top' classify model a.png --top 0
rejects 2 'DATA' eval classify model
rejects 2 '--masks' train segment --images a --out model
rejects 2 '--classes' train segment --images a --masks b --out model
rejects 2 'are for a new model' train segment --images a --masks b --out model --from model --width 8
rejects 2 '--stem' train segment --images a --masks b --classes c --out model --stem 3
rejects 2 'PICTURE' segment
rejects 2 '--masks' eval segment model --images a
rejects 2 '--size' data scenes --out s --size 8

# ---- Files that do not fit: 1 ----
printf 'one column\nand another\n' >one_column.tsv
: >empty.tsv
{ head -c 100000 /dev/zero | tr '\0' 'x'; printf '\t'; head -c 100000 /dev/zero | tr '\0' 'y'; printf '\n'; } >long.tsv
printf '\xff\xfe\x80\t\xc3\x28\n' >invalid.tsv
mkdir folder
mkdir other && printf '{"model_type": "vit", "architectures": ["ViTForImageClassification"]}' >other/config.json
mkdir broken && printf '{"model_type": ' >broken/config.json
mkdir plain && printf 'x\n' >plain/readme
printf 'a\nb\n' >two.txt
printf 'a\n' >one.txt
for bad in missing empty one_column long invalid; do
  rejects 1 "$bad.tsv" train translate --pairs $bad.tsv --out model
done
for bad in missing empty long invalid; do
  rejects 1 "$bad.tsv" train translate --source $bad.tsv --target one.txt --out model
  rejects 1 "$bad.tsv" train translate --source one.txt --target $bad.tsv --out model
done
rejects 1 'folder' train translate --pairs folder --out model
rejects 1 'two.txt|one.txt' train translate --source two.txt --target one.txt --out model
for command in translate 'eval translate'; do
  pairs=()
  [ "$command" = translate ] || pairs=(--pairs one_column.tsv)
  # shellcheck disable=SC2086
  {
    rejects 1 'missing' $command missing "${pairs[@]}"
    rejects 1 'one_column.tsv' $command one_column.tsv "${pairs[@]}"
    rejects 1 'vit' $command other "${pairs[@]}"
    rejects 1 'broken' $command broken "${pairs[@]}"
    rejects 1 'plain' $command plain "${pairs[@]}"
  }
done
rejects 1 'missing is not a folder' convert missing
rejects 1 'plain/pytorch_model.bin' convert plain
mkdir pickled && printf 'nonsense' >pickled/pytorch_model.bin
rejects 1 'pickled/pytorch_model.bin' convert pickled

# ---- A small model, to be used and misused ----
words=(file window folder name open close save print the a no not error page text)
for i in $(seq 1 400); do
  a=${words[$((i % 15))]} b=${words[$((i * 7 % 13))]} c=${words[$((i * 5 % 11))]}
  printf '%s %s %s %d.\t%s-e %s-e %s-e %d.\n' "$a" "$b" "$c" "$i" "$c" "$a" "$b" "$i"
done >good.tsv
checks=$((checks + 1))
timeout 300 "$heed" train translate --pairs good.tsv --valid-pairs 20 --out model --steps 4 --vocab 400 --dim 16 --hidden 16 \
  --batch-tokens 500 >.out 2>.err || fail "training a small model"
for part in config.json model.safetensors source.spm target.spm; do
  check "the model folder has $part" test -s "model/$part"
done
[ -s .out ] && fail "training wrote to standard output"
rejects 1 'there is no folder nowhere' train translate --pairs good.tsv --out more --from nowhere --steps 2
check 'nothing is made for it' test ! -e more
runs train translate --pairs good.tsv --out more --from model --steps 2
check 'it goes on with the vocabulary of the model' cmp model/source.spm more/source.spm

printf 'open the file\n\n   \nsave\xff\xfe it\n%s\nno\0thing\nlast without an end' "$(head -c 2000000 /dev/zero | tr '\0' z)" >input.txt
input=input.txt accepts '' translate model --beam 2 --max-length 5
check 'a line for every line' test "$(wc -l <.out)" = 7
check 'an empty line stays empty' test -z "$(sed -n 2p .out)$(sed -n 3p .out)$(sed -n 5p .out)"
check 'it says what was not UTF-8' grep -q '^heed: 1 line had bytes that are not UTF-8' .err
check 'it says what was too long' grep -q '^heed: 1 line had more than 1,048,576 bytes' .err
printf 'open the file\nsave it\n' >two_lines.txt
input=two_lines.txt accepts '' translate model --attention attention.json --max-length 4
check 'the attention is there' grep -q '"attention"' attention.json

input=two_lines.txt accepts '' translate model --alignment alignment.txt --max-length 4
check 'a line of links for each' test "$(wc -l <alignment.txt) $(grep -cE '^([0-9]+-[0-9]+( |$))*$' alignment.txt)" = '2 2'
check 'there are links' grep -qE '^0-[0-9]|[0-9]+-0' alignment.txt
rejects 2 'give --placeholders or --alignment' translate model --alignment x.txt --placeholders
rejects 2 'are for lines' translate model --alignment x.txt --po two_lines.txt --out x.po

# Pairs set aside: none is lost, none is on both sides, and what differs only in case stays together.
for n in $(seq 300); do printf 'sentence %s%s\tSatz %s\n' "$(printf '%s' "$n" | tr 0-9 a-j)" '' "$n"; done >all.tsv
printf 'SENTENCE B\tSatz groß\n' >>all.tsv
runs data split all.tsv --fraction 0.2 --train train.tsv --held-out held_out.tsv
check 'every pair is on one side' test "$(cat train.tsv held_out.tsv | sort)" = "$(sort all.tsv)"
check 'some are held out' test "$(wc -l <held_out.tsv)" -gt 20 -a "$(wc -l <held_out.tsv)" -lt 120
check 'alike stays together' test "$(grep -ci '^sentence b	' held_out.tsv)" != 1
rejects 1 'nothere.tsv' data split nothere.tsv --train train2.tsv --held-out held_out2.tsv
rejects 2 'is not from 0 to 1' data split all.tsv --fraction 1.5 --train train2.tsv --held-out held_out2.tsv
rejects 1 'there is no folder nowhere' data messages --out nowhere/messages.tsv
rejects 1 'package' data messages --package 'no such name' --out messages.tsv --work work

# The model in the box.
accepts 'Bahnhof' translate 'Where is the station?'
input=two_lines.txt accepts '.' translate
check 'a line for each of the input' test "$(wc -l <.out)" = 2
rejects 1 'modle does not exist' translate modle
printf 'station\tHaltestelle\n' >stop.tsv
accepts '^[^.?]*Haltestelle\?' translate 'Where is the station?' --terms stop.tsv
accepts '%s' translate 'The file %s could not be opened.' --placeholders

# Lines: arguments, n-best, confidence, JSON, files, long ones, one by one.
accepts '.' translate model 'open the file' 'save it' --max-length 4
check 'a line for each argument' test "$(wc -l <.out)" = 2
input=two_lines.txt accepts '^0\.[0-9]{2}	' translate model --confidence --max-length 4
input=two_lines.txt accepts '^-?[0-9.]+	[0-9.]+	' translate model --nbest 3 --beam 3 --max-length 4
check 'three lines and an empty one for each' test "$(wc -l <.out) $(grep -c '^$' .out)" = '8 2'
input=two_lines.txt accepts '"nbest":.*"source":"open the file"' translate model --nbest 2 --json --max-length 4
check 'one object per line' test "$(wc -l <.out)" = 2
runs translate model --in two_lines.txt --out lines_out.txt --max-length 4
check 'the file has a line for each' test "$(wc -l <lines_out.txt)" = 2
check 'no bar in a pipe' test ! -s .err
rejects 1 'nothere.txt' translate model --in nothere.txt
rejects 1 'folder' translate model --in folder
{ for _ in $(seq 20); do printf 'Open the file and close it.  '; done; echo; head -c 100000 /dev/zero | tr '\0' z; echo; } >long.txt
input=long.txt accepts '' translate model --max-length 4
check 'it says what was split' grep -q '^heed: 1 line was long; it was split into 20 sentences' .err
check 'a long line stays one line' test "$(wc -l <.out)" = 2
check 'what is no word is copied' test "$(sed -n 2p .out | tr -d z | wc -c) $(sed -n 2p .out | wc -c)" = '1 100001'
printf 'file\tDatei\n' >terms.tsv
printf 'file Datei\n' >bad_terms.tsv
rejects 1 'bad_terms.tsv line 1' translate model text --terms bad_terms.tsv
accepts '"missing_terms"' translate model 'open the file' --terms terms.tsv --json --max-length 4
mkfifo lines.fifo
timeout 60 "$heed" translate model --stream --max-length 4 <lines.fifo >stream.out 2>.err &
stream=$!
exec 9>lines.fifo
echo 'open the file' >&9
for _ in $(seq 300); do [ -s stream.out ] && break; sleep 0.1; done
check 'an answer comes while the input is open' test "$(wc -l <stream.out)" = 1
exec 9>&-
wait "$stream"
rm lines.fifo

# Catalogues and translation memories.
cat >in.po <<'END'
msgid ""
msgstr ""
"Content-Type: text/plain; charset=UTF-8\n"
"Plural-Forms: nplurals=2; plural=(n != 1);\n"

#, c-format
msgid "open %s file"
msgstr ""

msgid "close"
msgstr "zu"

msgid "%d:%d"
msgstr ""
END
accepts '"line":7' translate model --po in.po --out out.po --json --max-length 6
check 'it says what was filled' grep -q '^heed: in.po: filled 2 of 2 entries' .err
check 'no bar beside a file in a pipe' test "$(grep -vc '^heed: ' .err)" = 0
check 'two entries are fuzzy' test "$(grep -c '^#, fuzzy' out.po)" = 2
check 'the placeholder is there' grep -q '^msgstr ".*%s.*"' out.po
check 'the rest is untouched' test "$(grep -A1 '"close"' out.po)" = "$(grep -A1 '"close"' in.po)"
cp in.po same.po
runs translate model --po same.po --out same.po --max-length 6
check 'a file may be filled in place' cmp -s same.po out.po
head -c 150 in.po >cut.po
rejects 1 'cut.po line' translate model --po cut.po --out new.po
rejects 1 'missing.po' translate model --po missing.po --out new.po
rejects 1 'nowhere' translate model --po in.po --out nowhere/new.po
printf '<tmx version="1.4"><header srclang="en"/><body>\n<tu><tuv xml:lang="en"><seg>open <ph x="1"/></seg></tuv></tu>\n</body></tmx>\n' >in.tmx
runs translate model --tmx in.tmx --out out.tmx --target-lang de --max-length 6
check 'the target is there' grep -q '<tuv xml:lang="de" creationtool="heed"><seg>.*<ph x="1"/>.*</seg></tuv></tu>$' out.tmx
rejects 1 '--target-lang' translate model --tmx in.tmx --out new.tmx
head -c 80 in.tmx >cut.tmx
rejects 1 'cut.tmx line 2.*cut off' translate model --tmx cut.tmx --out new.tmx
accepts 'model.*\n?' eval translate model --pairs good.tsv --beam 1 --max-length 3 --output out.txt
check 'a translation for every pair' test "$(wc -l <out.txt)" = 400
accepts '"sentences_per_second"' eval translate model --pairs good.tsv --beam 1 --max-length 3 --json --lowercase
# Of search a folder's generation_config.json says what the user does not.
cp -r "$data/../../models/en-de" folder_says
sed -i 's/"num_beams": 4/"num_beams": 2/; s/"length_penalty": 1.0/"length_penalty": 0.5/' folder_says/generation_config.json
printf 'Open the file.\tDie Datei öffnen.\n' >pair.tsv
accepts '"beam": 2' eval translate folder_says --pairs pair.tsv --json
check 'and the length penalty' grep -q '"length_penalty": 0.5' .out
accepts '"beam": 3' eval translate folder_says --pairs pair.tsv --json --beam 3 --length-penalty 2
check 'and the length penalty' grep -q '"length_penalty": 2.0' .out
rejects 2 '--nbest 3 is more than --beam 2' translate folder_says --nbest 3 --beam 2
rm -r folder_says
check 'no temporary file' test -z "$(find . -name '*.tmp*')"

# A model of Marian's, as it came with PyTorch's own file of weights.
cp -r "$data/marian/opus_bin" opus && cp "$data"/marian/opus/{source.spm,target.spm,vocab.json} opus
rejects 1 'heed convert opus' translate opus
accepts '^opus/model.safetensors: [0-9]+ tensors.*3 copies' convert opus
rejects 1 'there already' convert opus
printf '>>deu<< the dog sees the man\n' >one_line.txt
input=one_line.txt accepts '^der Hund sieht den Mann$' translate opus

input=two_lines.txt
rejects 1 'nowhere' translate model --max-length 3 --attention nowhere/attention.json
input=/dev/null

# A model of the right task, damaged.
for damage in 'head -c 100' 'head -c 8' 'head -c 0'; do
  rm -rf damaged && cp -r model damaged
  $damage model/model.safetensors >damaged/model.safetensors
  rejects 1 'model.safetensors' translate damaged
done
rm -rf damaged && cp -r model damaged && printf '\xff\xff\xff\xff\xff\xff\xff\x7f{}' >damaged/model.safetensors
rejects 1 'model.safetensors' translate damaged
cp model/model.safetensors damaged/ && echo nonsense >damaged/source.spm
rejects 1 'source.spm' translate damaged

# Training into a folder whose model is good, with data that is bad, leaves it as it is.
cp -r model before
rejects 1 'one_column' train translate --pairs one_column.tsv --out model
check 'the good model is untouched' diff -r model before

# ---- Pictures ----
# IDX files with 40 pictures of 8 x 8: even ones dark, odd ones light.
mkdir -p idx && for split in train t10k; do
  printf '\0\0\x08\x03\0\0\0\x28\0\0\0\x08\0\0\0\x08' >idx/$split-images-idx3-ubyte
  printf '\0\0\x08\x01\0\0\0\x28' >idx/$split-labels-idx1-ubyte
  for i in $(seq 0 39); do
    printf "\\x$(printf %02x $((i % 2 * 200 + i)))%.0s" $(seq 64) >>idx/$split-images-idx3-ubyte
    printf "\\x0$((i % 2))" >>idx/$split-labels-idx1-ubyte
  done
done
# A grey picture of 2 x 2 as BMP.
printf 'BM\x46\0\0\0\0\0\0\0\x36\0\0\0\x28\0\0\0\x02\0\0\0\x02\0\0\0\x01\0\x18\0\0\0\0\0\x10\0\0\0%b%b' \
  '\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0' '\0310\0310\0310\0310\0310\0310\0\0\0310\0310\0310\0310\0310\0310\0\0' >light.bmp
printf 'dark\nlight\n' >names.txt
rejects 1 'there is no folder missing' train classify missing --out sees
rejects 1 'no folder for any class' train classify folder --out sees
rejects 1 'there is no folder missing' train classify idx --out sees --test missing
runs train classify idx --out sees --classes names.txt --width 8 --depth 1 --steps 20 --batch 10 --no-flip --crop 0 --erase 0
check 'it says how good it is' grep -q 'Accuracy on the 40 pictures of idx (t10k).*: [0-9.]*%' .err
for part in config.json model.safetensors preprocessor_config.json training.json; do
  check "the model folder has $part" test -s "sees/$part"
done
accepts '%  (light|dark)$' classify sees light.bmp
check 'two classes, two lines behind the name' test "$(wc -l <.out)" = 3
accepts '^\{"picture":"light.bmp","answers":\[\{"class":"(light|dark)","probability":0?\.?[0-9]' classify sees light.bmp --json --top 1
accepts 'light.bmp' classify sees light.bmp light.bmp --attention-out maps
check 'a map for each' test -s maps/light.attention.png -a -s maps/light-2.attention.png
accepts '^accuracy  *[0-9.]+%' eval classify sees idx
accepts '"recall"' eval classify sees idx --json
rejects 1 'nothere.png' classify sees nothere.png
rejects 2 'no picture to classify' classify sees
checks=$((checks + 2))
"$heed" classify sees nothere.png light.bmp >.out 2>.err
[ $? = 1 ] || fail 'a picture that is missing: not exit code 1'
grep -q 'light' .out || fail 'a picture that is missing: the others are not told'
check 'it says how many are missing' grep -q '1 of 2 pictures could not be read' .err
rejects 1 'heed-rnn' classify model light.bmp
rejects 1 'heed_cnn' translate sees
rejects 1 'no picture in the folders of its classes' eval classify sees folder
runs train classify idx --out blind --arch cnn --width 8 --depth 1 --steps 2
rejects 1 'without attention' classify blind light.bmp --attention-out nomaps
runs train classify idx --out more --from sees --freeze-backbone --steps 2
check 'only the head has learned' grep -q 'parameters, 66 of them' .err

# Scenes, a network that segments them, masks, overlays and maps.
rejects 1 'there is no folder missing' data scenes --from missing --out scenes
runs data scenes --from idx --classes names.txt --out scenes --count 6 --test 2 --size 32
rejects 1 'is not empty' data scenes --from idx --classes names.txt --out scenes --count 6 --size 32
check 'the scenes have masks' test -s scenes/masks/00005.png -a -s scenes/test-masks/00001.png
rejects 1 'there is no folder missing' train segment --images missing --masks scenes/masks --classes scenes/classes.txt --out finds
runs train segment --images scenes/images --masks scenes/masks --classes scenes/classes.txt --out finds --width 8 --depth 2 --steps 4 --batch 2
check 'it says how good it is' grep -q 'mean IoU .* held out' .err
for part in config.json model.safetensors preprocessor_config.json classes.txt training.json; do
  check "the model folder has $part" test -s "finds/$part"
done
accepts '%  (background|light|dark)$' segment finds scenes/test-images/00000.png --masks-out found --overlay-out found --attention-out found
check 'a mask, an overlay and a map' test -s found/00000.png -a -s found/00000.overlay.png -a -s found/00000.gate1.png
accepts '"mask":"found/light.png"' segment finds light.bmp --masks-out found --json
accepts '^pixel accuracy  *[0-9.]+%' eval segment finds --images scenes/test-images --masks scenes/test-masks --masks-out answers
accepts '"mean_iou": [0-9.]+' eval segment finds --images scenes/test-images --masks scenes/test-masks --json
# The answers, laid beside themselves, agree.
accepts '"mean_iou": 1.0' eval segment finds --images scenes/test-images --masks answers --json
rejects 1 'nothere.png' segment finds nothere.png
rejects 2 'no picture to segment' segment finds
rejects 1 'heed_unet' classify finds light.bmp
# With the models in the box.
accepts '%  (T-shirt/top|Trouser|Pullover|Dress|Coat|Sandal|Shirt|Sneaker|Bag|Ankle boot)$' classify light.bmp
accepts '%  (background|nucleus)$' segment light.bmp
rejects 1 'nothere.png' segment nothere.png

# ---- Readers that leave ----
checks=$((checks + 3))
set +o pipefail
for _ in 1 2 3; do
  "$heed" explain "$(seq 500)" "$(seq 200)" 2>.err | true
  [ "${PIPESTATUS[0]}" = 0 ] || fail "a reader that leaves early: exit code ${PIPESTATUS[0]}"
done
[ -s .err ] && fail 'a reader that leaves early: words on standard error'
"$heed" explain a b >/dev/full 2>.err
check 'a full disk under standard output: exit code 1' test $? = 1
check 'a full disk under standard output: says so' grep -q '^heed: .*No space' .err
"$heed" explain a b >&- 2>.err
check 'a closed standard output: exit code 1' test $? = 1
check 'a closed standard output: says so' test "$(wc -l <.err)" = 1
"$heed" translate missing 2>&- </dev/null
check 'a closed standard error: exit code 1' test $? = 1

printf '%d checks, %d failed\n' "$checks" "$failures"
[ "$failures" = 0 ]
