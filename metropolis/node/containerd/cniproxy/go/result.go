// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"fmt"
	"net"

	pb "metropolis/node/core/network/workloads/spec"
)

// Result is what Setup made. containerd keeps it as JSON in its metadata
// store, so the names of fields here are an on-disk format: go-cni's.
type Result struct {
	// By name: the sandbox's interface, and the host's end of it, which has
	// no Sandbox.
	Interfaces map[string]*Config
	DNS        []resultDNS
	Routes     []route
}

// Config is an interface.
type Config struct {
	IPConfigs  []*IPConfig
	Mac        string
	Sandbox    string
	PciID      string
	SocketPath string
}

// IPConfig is an address of an interface, and its first hop.
type IPConfig struct {
	IP      net.IP
	Gateway net.IP
}

// As types.DNS of CNI's library.
type resultDNS struct {
	Nameservers []string `json:"nameservers,omitempty"`
	Domain      string   `json:"domain,omitempty"`
	Search      []string `json:"search,omitempty"`
	Options     []string `json:"options,omitempty"`
}

// As types.Route of CNI's library; scope 253 is link, see rtnetlink(7).
type route struct {
	Dst   string `json:"dst"`
	GW    string `json:"gw,omitempty"`
	Scope *int   `json:"scope,omitempty"`
}

func newResult(path string, dns *pb.DNS, made *pb.AttachResponse) (*Result, error) {
	gateways := map[int]net.IP{}
	for _, packed := range made.GetGateway() {
		if len(packed) != net.IPv4len && len(packed) != net.IPv6len {
			return nil, fmt.Errorf("a gateway of %d bytes: %w", len(packed), ErrInvalidResult)
		}
		gateways[len(packed)] = packed
	}
	own := &Config{Mac: net.HardwareAddr(made.GetMac()).String(), Sandbox: path}
	for _, packed := range made.GetIp() {
		if len(packed) != net.IPv4len && len(packed) != net.IPv6len {
			return nil, fmt.Errorf("an address of %d bytes: %w", len(packed), ErrInvalidResult)
		}
		own.IPConfigs = append(own.IPConfigs, &IPConfig{IP: packed, Gateway: gateways[len(packed)]})
	}
	if len(own.IPConfigs) == 0 {
		return nil, fmt.Errorf("no address: %w", ErrInvalidResult)
	}
	result := &Result{
		Interfaces: map[string]*Config{interfaceName: own},
		DNS: []resultDNS{{
			Nameservers: dns.GetServers(), Search: dns.GetSearches(), Options: dns.GetOptions(),
		}},
	}
	if host := made.GetHostInterface(); host != "" {
		result.Interfaces[host] = &Config{Mac: firstHopMAC}
	}
	link := 253
	for _, one := range made.GetRoutes() {
		bits := 8 * len(one.GetDestination())
		mask := net.CIDRMask(int(one.GetPrefixLength()), bits)
		if mask == nil || (bits != 32 && bits != 128) {
			return nil, fmt.Errorf("a route to %d bytes/%d: %w", bits/8, one.GetPrefixLength(), ErrInvalidResult)
		}
		told := route{Dst: (&net.IPNet{IP: one.GetDestination(), Mask: mask}).String()}
		if gateway := one.GetGateway(); len(gateway) != 0 {
			told.GW = net.IP(gateway).String()
		} else {
			told.Scope = &link
		}
		result.Routes = append(result.Routes, told)
	}
	return result, nil
}
