#!/bin/sh
# A CNI plugin that does what its mode file says. What it gives is a file, so a test sees what is not taken back.
dir=@DIR@
name=${0##*/}
cat > /dev/null
mode=$(cat "$dir/mode-$name" 2> /dev/null)
echo "$name $CNI_COMMAND ${CNI_CONTAINERID:--} ${CNI_NETNS:--}" >> "$dir/calls"
fail() {
  echo "{\"cniVersion\":\"1.1.0\",\"code\":$1,\"msg\":\"$2\"}"
  exit 1
}
case $mode in
  "$CNI_COMMAND hang")
    sleep 1000 &
    echo $! > "$dir/child"
    echo $$ > "$dir/pid"
    wait ;;
  "$CNI_COMMAND fail") fail 999 "told to fail" ;;
  "$CNI_COMMAND garbage")
    echo "this is no JSON"
    exit 0 ;;
  "$CNI_COMMAND flood") exec head -c 100000000 /dev/zero ;;
  "$CNI_COMMAND pipes")
    sleep 1000 &
    echo $! > "$dir/child" ;;
  "$CNI_COMMAND times "*)
    left=${mode##* }
    echo "$CNI_COMMAND times $((left - 1))" > "$dir/mode-$name"
    [ "$left" -le 1 ] && : > "$dir/mode-$name"
    fail 11 "try again, $left" ;;
esac
case $CNI_COMMAND in
  ADD)
    : > "$dir/held/$name-$CNI_CONTAINERID"
    echo "{\"cniVersion\":\"1.1.0\",\"interfaces\":[{\"name\":\"eth0\",\"sandbox\":\"$CNI_NETNS\"}],\"ips\":[{\"address\":\"192.0.2.7/24\",\"interface\":0}]}" ;;
  DEL) rm -f "$dir/held/$name-$CNI_CONTAINERID" ;;
  VERSION) echo '{"cniVersion":"1.1.0","supportedVersions":["1.0.0","1.1.0"]}' ;;
esac
exit 0
