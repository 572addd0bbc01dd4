// SPDX-License-Identifier: Apache-2.0

package cni

// Requested addresses, MAC, MTU and routes: what is sent.

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
)

func TestClientRequested(t *testing.T) {
	d := &double{answer: good()}
	path := socket(t)
	defer serve(t, path, d)()
	c := at(t, path)
	labels := WithLabels(map[string]string{
		"K8S_POD_NAME": "web", "IP": "fd00::78/64,10.192.0.78", "MAC": "02-ab-00-00-00-01",
	})
	ips := WithCapability("ips", []string{"10.192.0.77/24", "fd00::77"})
	mac := WithCapability("mac", "02:AB:00:00:00:02")
	const byLabels = "[fd000000000000000000000000000078 0ac0004e] 02ab00000001"
	const byCapability = "[0ac0004d fd000000000000000000000000000077] 02ab00000002"
	for i, one := range []struct {
		opts []NamespaceOpts
		want string
	}{
		{[]NamespaceOpts{labels}, byLabels},
		{[]NamespaceOpts{ips, mac}, byCapability},
		// A capability has priority, in either order.
		{[]NamespaceOpts{labels, ips, mac}, byCapability},
		{[]NamespaceOpts{ips, mac, labels}, byCapability},
		{[]NamespaceOpts{WithArgs("IP", "10.192.0.78"), WithArgs("K8S_POD_UID", "u")}, "[0ac0004e] "},
		{[]NamespaceOpts{WithArgs("IP", ""), WithArgs("MAC", "")}, "[] "},
	} {
		if _, err := c.Setup(context.Background(), "s", "/n", one.opts...); err != nil {
			t.Fatal(err)
		}
		sent := d.attached[len(d.attached)-1]
		if got := fmt.Sprintf("%x %x", sent.RequestedIp, sent.RequestedMac); got != one.want {
			t.Errorf("%d: got %s, want %s", i, got, one.want)
		}
	}
	if got := d.attached[4].Labels; got["IP"] != "10.192.0.78" || got["K8S_POD_UID"] != "u" {
		t.Errorf("labels are %v", got)
	}

	routes := WithRoutes(Route{Dst: "192.0.2.9/24"}, Route{"2001:db8::/32", "fe80::1"}, Route{Dst: "0.0.0.0/0"})
	if _, err := c.Setup(context.Background(), "s", "/n", WithMTU(1400), routes); err != nil {
		t.Fatal(err)
	}
	sent := d.attached[len(d.attached)-1]
	var got []string
	for _, one := range sent.Routes {
		got = append(got, fmt.Sprintf("%x/%d %x", one.Destination, one.PrefixLength, one.Gateway))
	}
	want := []string{
		"c0000200/24 ",
		"20010db8000000000000000000000000/32 fe800000000000000000000000000001",
		"00000000/0 ",
	}
	if sent.Mtu != 1400 || !slices.Equal(got, want) {
		t.Errorf("MTU %d, routes %q, want %q", sent.Mtu, got, want)
	}

	calls := len(d.attached)
	for words, opt := range map[string]NamespaceOpts{
		`"10.192.0.300" is no IP address`:                    WithCapability("ips", []string{"10.192.0.300"}),
		`"10.192.0.7/33" is no IP address`:                   WithArgs("IP", "10.192.0.7/33"),
		`"fe80::7%eth0" is no IP address`:                    WithArgs("IP", "10.192.0.7,fe80::7%eth0"),
		`"" is no IP address`:                                WithArgs("IP", "10.192.0.7,"),
		`capability mac: "02:ab"`:                            WithCapability("mac", "02:ab"),
		`"02:00:00:00:00:00:00:01": six hex`:                 WithArgs("MAC", "02:00:00:00:00:00:00:01"),
		`capability "ips": string is not supported`:          WithCapability("ips", "10.192.0.7"),
		`capability "mac": []string is not supported`:        WithCapability("mac", []string{"02:ab"}),
		`capability "deviceID": string is not supported`:     WithCapability("deviceID", "0000:03:02.3"),
		`capability "aliases": map[string][]string is not`:   WithCapability("aliases", map[string][]string{"net": {"web"}}),
		`capability "infinibandGUID": string is not support`: WithCapability("infinibandGUID", "c2:11:22:33:44:55:66:77"),
		`Dst:192.0.2.0 GW:}: a prefix length`:                WithRoutes(Route{Dst: "192.0.2.0"}),
		`Dst:192.0.2.0/33 GW:}: a prefix length`:             WithRoutes(Route{Dst: "192.0.2.0/33"}),
		`"here" is no IP address`:                            WithRoutes(Route{"192.0.2.0/24", "here"}),
	} {
		_, err := c.Setup(context.Background(), "s", "/n", opt)
		if !errors.Is(err, ErrInvalidConfig) || !strings.Contains(err.Error(), words) {
			t.Errorf("%s: %v", words, err)
		}
	}
	if len(d.attached) != calls {
		t.Errorf("%d calls", len(d.attached)-calls)
	}
}
